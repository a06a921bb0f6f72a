"""Files that name other files or addresses: playlists of every kind, and MP4 whose data lies elsewhere. None may make a reader open what it
names; `Opened` (inotify) and `counting_server` see whether one does."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SUFFIXES = (".mp4", ".mkv", ".ts", ".avi", ".m3u8", ".mpd", ".webm", ".txt")


def texts(target: str) -> dict[str, str]:
    """Kind -> contents of a playlist that names `target`."""
    media = f"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n"
    head = '<?xml version="1.0"?>\n'
    mpd = (
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1000" codecs="avc1.42E01E" width="176" height="96">{}'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    return {
        "hls": media,
        "hls with a key": media.replace("#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF'),
        "hls with a map": media.replace("#EXTINF", f'#EXT-X-MAP:URI="{target}"\n#EXTINF'),
        "hls master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000,RESOLUTION=176x96\n{target}\n",
        "m3u": f"#EXTM3U\n#EXTINF:2,a title\n{target}\n",
        "dash": head + mpd.format(f"<BaseURL>{target}</BaseURL><SegmentBase/>"),
        "dash template": head + mpd.format(f'<SegmentTemplate initialization="{target}" media="{target}" duration="2"/>'),
        "ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "concat without a head": f"file '{target}'\n",
        "ffconcat, option": f"ffconcat version 1.0\nfile '{target}'\noption safe 0\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{target}\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "smil": f'<smil><body><video src="{target}"/></body></smil>',
        "xspf": head + f'<playlist version="1"><trackList><track><location>{target}</location></track></trackList></playlist>',
        "pls": f"[playlist]\nNumberOfEntries=1\nFile1={target}\n",
        "reference": f"[Reference]\nRef1={target}\n",
        "rtsp text": f"RTSPtext\n{target}\n",
        "address": f"{target}\n",
    }


def mp4_with_data_elsewhere(mp4: bytes, target: str, kind: str) -> bytes:
    """The MP4 with its first data reference turned into one that names `target`: as "url " or as a Mac alias ("alis")."""
    if kind == "url ":
        entry = b"url " + bytes(4) + target.encode() + b"\0"
    else:
        path = target.encode()
        alias = bytes(10) + bytes([4]) + b"disk".ljust(27, b"\0") + bytes(12) + bytes([4]) + b"file".ljust(63, b"\0") + bytes(16)
        alias += struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2) + b"\xff\xff\0\0"
        entry = b"alis" + bytes(4) + alias
    entry = struct.pack(">I", len(entry) + 4) + entry
    at = mp4.index(b"dref") + 12  # version and flags, count
    old = struct.unpack(">I", mp4[at : at + 4])[0]
    data = bytearray(mp4[:at] + entry + mp4[at + old :])
    start, end, path = 0, len(mp4), (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref")
    for name in path:  # every box around it grows
        while mp4[start + 4 : start + 8] != name:
            start += struct.unpack(">I", mp4[start : start + 4])[0]
            assert start < end
        size = struct.unpack(">I", mp4[start : start + 4])[0]
        data[start : start + 4] = struct.pack(">I", size + len(entry) - old)
        start, end = start + 8, start + size
    return bytes(data)


class Opened:
    """Counts how often files are opened, whoever does it (inotify)."""

    def __init__(self, *paths: Path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        for path in paths:
            assert self._libc.inotify_add_watch(self._handle, os.fsencode(path), 0x20) >= 0  # IN_OPEN

    def count(self) -> int:
        """Since the last call."""
        try:
            return len(os.read(self._handle, 1 << 16)) // 16
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self._handle)


@contextmanager
def counting_server(contents: bytes, content_type: str = "video/mp4") -> Iterator[tuple[str, list[str]]]:
    """A server without ranges on 127.0.0.1: (its address, the paths that were asked for)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(contents)))
            self.end_headers()
            with suppress(OSError):  # the other side went away
                self.wfile.write(contents)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
