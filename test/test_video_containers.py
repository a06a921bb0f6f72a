"""Which containers, addresses and streams are read: no playlist, no other file, one rule for the stream; limits; names in any coding."""

from __future__ import annotations

import io
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from barcode_videos import barcode_frame, read_barcode, write_video
from playlists import SUFFIXES, Opened, counting_server, mp4_with_data_elsewhere, texts

from aha.core.addresses import shown_address, without_secrets
from aha.errors import UserError
from aha.video import Limits, iter_frames, probe, read_video
from aha.watch.sources import Sampler, _sampled, open_network, read_pipe


def piped(monkeypatch, data: bytes, fps: float = 4.0):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    return list(read_pipe(fps, None, 25.0))


def test_no_playlist_opens_what_it_names(tmp_path, monkeypatch):
    """Over 900 files that name a video, under 8 suffixes, as a file and through a pipe."""
    canary = write_video(tmp_path / "canary.mp4", count=10)
    transport = write_video(tmp_path / "canary.ts", count=10)
    own = write_video(tmp_path / "own.mp4", count=3).read_bytes()
    nested = tmp_path / "nested.m3u8"
    nested.write_text(texts(str(transport))["hls"])
    refused, named, read = 0, 0, set()
    with counting_server(canary.read_bytes()) as (address, asked):
        opened = Opened(canary, transport, nested)
        canary.read_bytes()
        assert opened.count() == 1  # the watch sees it
        targets = [str(canary), "canary.mp4", "canary.ts", f"file:{canary}", f"file://{transport}", f"{address}/canary.mp4", "nested.m3u8"]
        for target in targets:
            contents = {kind: text.encode() for kind, text in texts(target).items()}
            contents |= {f"mp4, {kind}": mp4_with_data_elsewhere(own, target, kind) for kind in ("url ", "alis")}
            for kind, data in contents.items():
                for suffix in SUFFIXES:
                    path = tmp_path / f"sent{suffix}"
                    path.write_bytes(data)
                    try:
                        read_video(path, num_frames=2)
                        read.add(kind)  # the pictures that lie in the file itself
                    except UserError as error:
                        refused += 1
                        named += "is a playlist, not a video" in str(error)
                        assert "\n" not in str(error) and "Traceback" not in str(error)
                if kind.startswith("mp4"):
                    continue  # a pipe cannot be read from its end
                with pytest.raises(UserError, match="is a playlist, not a video|holds no video"):
                    piped(monkeypatch, data)
        assert (opened.count(), asked) == (0, [])
        opened.close()
    files = len(targets) * len(SUFFIXES)  # of a kind
    assert read == {"mp4, url "} and refused == 19 * files >= 200
    assert named == 17 * files + 2 * len(SUFFIXES)  # all texts; of the bare names those that are addresses (file://, http://)


def test_an_address_that_sends_a_playlist_is_refused(tmp_path):
    segment = write_video(tmp_path / "segment.ts", count=10)
    with counting_server(segment.read_bytes()) as (other, asked):
        for kind in ("hls", "dash", "ffconcat"):
            playlist = texts(f"{other}/segment.ts")[kind].encode()
            with counting_server(playlist, "application/vnd.apple.mpegurl") as (address, _), pytest.raises(UserError, match="no playlist"):
                open_network(f"{address}/live.m3u8", 1.0, 1)
        assert asked == []


# ---- which stream ----


def two_streams(path: Path, sizes: list[tuple[int, int]], default: int, covers: tuple[int, ...] = (), counts: tuple[int, ...] = (20, 20)):
    """A file with a stream of each size; its pictures show 100 * stream + number."""
    with av.open(str(path), "w") as out:
        streams = []
        for i, (width, height) in enumerate(sizes):
            stream = out.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.attached_pic if i in covers else int(i == default)
            streams.append(stream)
        for number in range(max(counts)):
            for i, stream in enumerate(streams):
                if number < counts[i]:
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(barcode_frame(100 * i + number, *sizes[i]), format="rgb24")))
        for stream in streams:
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_the_default_stream_is_read_by_every_backend_and_live(tmp_path, monkeypatch, suffix):
    path = two_streams(tmp_path / f"two.{suffix}", [(160, 96), (176, 96)], default=1)
    assert probe(path).width == 176
    for backend in ("pyav", "torchcodec"):
        if backend == "torchcodec":
            pytest.importorskip("torchcodec")
        frames = read_video(path, fps=2, resize=False, backend=backend)
        assert [read_barcode(image) for image in frames.frames_TCHW] == [100, 105, 110, 115]
    with pytest.raises(UserError, match="2 video streams, of which decord"):
        read_video(path, fps=2, backend="decord")
    if suffix == "mkv":
        live = piped(monkeypatch, path.read_bytes(), 2.0)
        assert all((a.image_CHW == b.frame_CHW).all() for a, b in zip(live, iter_frames(path, fps=2), strict=True))


def test_a_track_of_one_picture_is_read_only_where_there_is_no_other(tmp_path):
    path = two_streams(tmp_path / "still.mp4", [(160, 96), (176, 96)], default=0, counts=(1, 20))
    assert probe(path).width == 176 and probe(path).frame_count == 20
    assert probe(two_streams(tmp_path / "one.mp4", [(160, 96)], default=0, counts=(1,))).frame_count == 1


def test_a_song_with_a_cover_is_no_video_as_file_and_pipe(tmp_path, monkeypatch):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as out:
        sound, cover = out.add_stream("mp3", rate=44100), out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 176, 96, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(barcode_frame(5), format="rgb24").reformat(format="yuvj420p")))
        out.mux(cover.encode(None))
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            frame.sample_rate = 44100
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    for read in (lambda: read_video(path, fps=1), lambda: piped(monkeypatch, path.read_bytes())):
        with pytest.raises(UserError, match="has no video stream"):
            read()


# ---- turned pictures ----


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec", "live"])
def test_a_square_picture_of_wide_pixels_is_turned_by_its_display_matrix(tmp_path, backend):
    path = write_video(tmp_path / "turned.mp4", count=5, width=160, height=160, rotation=90, pixel_aspect=Fraction(2))
    if backend == "live":
        with av.open(str(path)) as container:
            picture_CHW = next(_sampled(container, Sampler(1.0), "test")).image_CHW
    else:
        pytest.importorskip(backend if backend != "pyav" else "av")
        picture_CHW = read_video(path, fps=1, backend=backend).frames_TCHW[0]
    lit = picture_CHW.max(0) > 20
    # half as wide as high; a tenth of the width is the black line of squares
    assert (int(lit.any(0).sum()), int(lit.any(1).sum())) == pytest.approx((192 - 19, 384), abs=2)


# ---- limits, names, addresses ----


def test_limits_for_places_where_strangers_send_files(tmp_path):
    path = write_video(tmp_path / "video.mp4", count=50)
    assert probe(path, Limits(pixels=176 * 96, seconds=2)).frame_count == 50
    with pytest.raises(UserError, match="176x96 pixels, more than the 10000 allowed here"):
        probe(path, Limits(pixels=10_000))
    with pytest.raises(UserError, match="lasts 2 s, more than the 1 s allowed here"):
        next(iter_frames(path, fps=1, limits=Limits(seconds=1)))
    # a stream that grows in mid-video: the header says nothing of it
    small, large = (write_video(tmp_path / f"{w}.h264", count=10, width=w, height=w, container="h264") for w in (64, 512))
    grows = tmp_path / "grows.h264"
    grows.write_bytes(small.read_bytes() + large.read_bytes())
    assert len(read_video(grows, limits=Limits(pixels=512 * 512)).times) == 20
    with pytest.raises(UserError, match="cannot be decoded"):
        list(iter_frames(grows, limits=Limits(pixels=64 * 64)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_and_tags_that_are_not_utf8(tmp_path):
    made = write_video(tmp_path / "made.mkv", count=10)
    path = os.path.join(str(tmp_path), os.fsdecode(b"caf\xe9.mkv"))
    os.rename(made, path)
    assert probe(path).frame_count == 10
    for backend in ("pyav", "decord", "torchcodec"):
        try:
            assert len(read_video(path, fps=5, backend=backend).times) == 2
        except UserError as error:
            assert backend != "pyav" and "\n" not in str(error)
    tagged = tmp_path / "tagged.avi"
    with av.open(str(tagged), "w") as out:
        out.metadata["title"] = "cafe"
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 176, 96
        out.mux(stream.encode(av.VideoFrame.from_ndarray(barcode_frame(3), format="rgb24")))
        out.mux(stream.encode(None))
    tagged.write_bytes(tagged.read_bytes().replace(b"cafe", b"caf\xe9"))
    assert probe(tagged).frame_count == 1


def test_pyav_19_which_always_reads_such_tags_and_has_no_argument_for_it(tmp_path, monkeypatch):
    """Python 3.12 and later get it from `av>=16`. A file, a pipe and a network stream, opened by a function with the arguments of that version."""
    path = write_video(tmp_path / "video.ts", count=8)
    real = av.open

    def as_in_19(file, mode=None, format=None, options=None, container_options=None, buffer_size=32768, timeout=None, io_open=None):
        return real(file, mode, format, options, timeout=timeout, metadata_errors="replace")

    monkeypatch.setattr(av, "__version__", "19.0.2")
    monkeypatch.setattr(av, "open", as_in_19)
    assert len(read_video(path, num_frames=4).times) == 4
    assert piped(monkeypatch, path.read_bytes())
    with counting_server(path.read_bytes()) as (address, asked):
        assert next(open_network(f"{address}/video.ts", 4.0, 1)[0])
    assert asked


@pytest.mark.parametrize("address, shown", [
    ("http://bob:S3cretPw@host/live.ts?token=abcd", "http://host/live.ts"),
    ("rtsp://bob:p@ss@cam:554/h264", "rtsp://cam:554/h264"),
    ("rtsp://bob:p?s#s@cam:554/h264?x=1#y", "rtsp://cam:554/h264"),
    ("rtsp://bob:pa/ss@cam/h264", "rtsp://cam/h264"),
    ("http://host/@user/clip.mp4?sig=a@b", "http://host/@user/clip.mp4"),
    ("HTTPS://host:8443/a#token", "HTTPS://host:8443/a"),
    ("rtsp://[::1]:554/live", "rtsp://[::1]:554/live"),
    ("//bob:secret@host/x", "//host/x"),
    ("folder/a@b?c.mp4", "folder/a@b?c.mp4"),
    ("camera:1", "camera:1"), ("-", "-"),
])  # fmt: skip
def test_addresses_are_shown_without_secrets(address, shown):
    assert shown_address(address) == shown
    assert without_secrets(f"{address} is gone", address) == f"{shown} is gone"
