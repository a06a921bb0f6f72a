"""Opening a source of pictures: which containers and which addresses are allowed, and which of its video streams is read.

Containers by an allow list, the same for files, pipes and network streams. A playlist (HLS, DASH, ffconcat, SDP, ASX, ...) is a text that
makes FFmpeg open whatever it names, so none is on the list; neither is anything else that opens a second file. Protocols by an allow list
for each kind of source: a file opens no other file and no address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from aha.errors import UserError
from aha.video.clock import Clock
from aha.video.frames import IMAGE_SUFFIXES

MAX_PIXELS = 1 << 27  # 16384 x 8192; a larger size comes from a damaged header, and decoding it would take the memory of the machine
MAX_SECONDS = 7 * 24 * 3600.0  # time stamps further apart come from damage; a sampling grid over them would never end
TIMEOUT = 10.0  # seconds without a byte after which a connection counts as lost

# FFmpeg's names. Sound alone is on the list so that a song is told to be one ("has no video stream").
VIDEO_FORMATS = (
    "mov,matroska,webm,avi,flv,live_flv,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,mjpeg,mpjpeg,h261,h263,h264,hevc,vvc,av1,obu,ivf,vc1,cavsvideo,"
    "avs2,avs3,dirac,ogg,asf,asf_o,wtv,mxf,gxf,nut,nsv,dv,rm,gif,apng,yuv4mpegpipe"
)
SOUND_FORMATS = "mp3,aac,flac,wav,w64,aiff,au,caf,ac3,eac3,amr,ape,wv,dts,truehd,tta,mpc,mpc8"
FORMATS = f"{VIDEO_FORMATS},{SOUND_FORMATS}"

# scheme of an address: (protocols that it may use, containers besides FORMATS)
NETWORK = {
    "http": ("http,https,tcp,tls,httpproxy", ""),
    "https": ("http,https,tcp,tls,httpproxy", ""),
    "rtsp": ("rtp,srtp,udp,tcp,tls", "rtsp"),
    "rtsps": ("rtp,srtp,udp,tcp,tls", "rtsp"),
    "rtmp": ("rtmp,tcp", ""),
    "srt": ("srt", ""),
    "udp": ("udp", ""),
    "tcp": ("tcp", ""),
    "rtp": ("rtp,udp", "rtp"),
}

COVERS = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
PICTURE_CODECS = {"mjpeg", "png", "bmp", "tiff", "webp", "gif", "jpeg2000", "jpegls", "ppm", "pgm", "pbm"}

# How the texts begin that name other files or addresses.
_PLAYLIST = re.compile(
    rb"[\s\xef\xbb\xbf\xff\xfe\0]*(#extm3u|#ext-x-|ffconcat|\[playlist\]|\[reference\]|rtsptext|v=0\s|<\?xml|<!--|<!doctype|<mpd|<asx|<smil|"
    rb"<playlist|<rss|<html|file\s+\S|[a-z]{2,6}://)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Limits:
    """What a video may be at most; smaller ones are for places where strangers send files."""

    pixels: int = MAX_PIXELS  # of one picture
    seconds: float = MAX_SECONDS


def open_container(path: str | os.PathLike) -> av.container.InputContainer:
    """Open a local video file. Raises UserError where it is no container of the list, or damaged."""
    path = os.fspath(path)
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:  # FFmpeg would read the name as a pattern of image names
        raise UserError(f"{path} has the name of an image, not of a video; rename it, or give a list of image files with source_fps.")
    try:
        return av.open(os.path.abspath(path), options=allowed("file"), **tags_as_they_are())
    except (av.error.FFmpegError, ValueError, OSError) as error:
        try:
            with open(path, "rb") as file:
                head = file.read(4096)
        except OSError:
            head = b""
        if is_playlist(head):
            raise UserError(f"video {path} cannot be opened: it is a playlist, not a video; give the video files themselves.") from error
        raise UserError(f"video {path} cannot be opened ({reason(error)}), so it is no video or damaged; download it again.") from error


def allowed(protocols: str, formats: str = "") -> dict[str, str]:
    """FFmpeg's options that hold a source to these protocols and to the containers of the list (with `formats` added)."""
    return {"protocol_whitelist": protocols, "format_whitelist": f"{FORMATS},{formats}" if formats else FORMATS}


def tags_as_they_are() -> dict[str, Any]:
    """The argument of `av.open` by which a file's tags need be no UTF-8. PyAV 19 has no such argument: it always reads them."""
    return {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def is_playlist(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a text that names other files or addresses."""
    return _PLAYLIST.match(head) is not None


def video_stream(container: av.container.InputContainer, name: str) -> av.video.stream.VideoStream:
    """The video stream that is read, the same for files, pipes, cameras and network streams, whoever decodes it.

    Covers and thumbnails are none; a track of one picture only where there is no other; then the one flagged as default, then the first.
    Raises UserError where there is none or it cannot be decoded.
    """
    tracks = video_tracks(container)
    if not tracks:
        raise UserError(f"{name} has no video stream (is it audio?); give a video file.")
    readable = [stream for stream in tracks if stream.codec_context is not None]
    if not readable:
        raise UserError(f"video {name} has a coding that this FFmpeg cannot decode; convert it (ffmpeg -i IN -c:v libx264 OUT.mp4).")
    timed = [stream for stream in readable if stream.time_base is not None and stream.time_base > 0]
    if not timed:
        raise UserError(f"video {name} has no time base, so it is damaged; download it again or re-encode it.")
    moving = any(stream.codec_context.name not in PICTURE_CODECS for stream in timed)
    default = av.stream.Disposition.default
    return min(timed, key=lambda s: (_is_still(s, moving), not s.disposition & default, s.index))


def video_tracks(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """The video streams that are no cover picture and no thumbnails."""
    return [stream for stream in container.streams.video if not stream.disposition & COVERS]


def _is_still(stream: av.video.stream.VideoStream, moving: bool) -> bool:
    """Whether the header says that the track is one picture. `moving`: there are tracks in a coding for moving pictures."""
    counted = next((value for key, value in stream.metadata.items() if key.upper().startswith("NUMBER_OF_FRAMES")), "")
    still = bool(stream.disposition & (av.stream.Disposition.still_image | av.stream.Disposition.dependent))
    return still or stream.frames == 1 or counted.strip() == "1" or (moving and stream.codec_context.name in PICTURE_CODECS)


def pixel_aspect_of(stream: av.video.stream.VideoStream) -> float:
    """Width of a stored pixel over its height; 1 where the file says nothing sensible."""
    aspect = stream.sample_aspect_ratio
    return float(aspect) if aspect is not None and Fraction(1, 10) <= aspect <= 10 else 1.0


def packets_of(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    failures: list[Exception] | None = None,
    clock: Clock | None = None,
) -> Iterator[av.Packet]:
    """The packets of the video stream in file order, on one clock (aha/video/clock.py); ends where the container cannot be read on, with
    the reason put into `failures`."""
    clock = clock or Clock(container, stream)
    packets = container.demux()
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, IndexError) as error:  # IndexError: damage made FFmpeg see streams that PyAV does not know
            if failures is not None:
                failures.append(error)
            return
        if packet.stream_index != stream.index:
            clock.hear(packet)
        elif packet.size:
            clock.repair(packet)
            yield packet


def reason(error: Exception) -> str:
    """What FFmpeg said, in short."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
