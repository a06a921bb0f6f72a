"""A local HTTP server whose connections break: a recording with ranges, or a live stream without a length; and one that stalls."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def broken_server(path: Path, cut_after: list[int | None], live_bytes_per_second: int | None = None):
    """Serve one file. Connection n (of those that ask for the body) is cut after `cut_after[n]` bytes; None or past the list: not cut.

    live_bytes_per_second: send no length and at this pace, every connection starting where the last one was cut, as a broadcast does.
    Yields (address, list of the first byte of each connection).
    """
    data = path.read_bytes()
    starts: list[int] = []
    sent_live = [0]
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            live = live_bytes_per_second is not None
            start = sent_live[0] if live else 0
            asked = self.headers.get("Range")
            if asked and not live:
                start = int(asked.split("=")[1].split("-")[0])
            with lock:
                number = len(starts)
                starts.append(start)
            limit = cut_after[number] if number < len(cut_after) else None
            if start >= len(data):
                self.send_error(416 if not live else 404)
                return
            self.send_response(206 if asked and not live else 200)
            self.send_header("Content-Type", "video/mp2t")
            self.send_header("Connection", "close")
            if not live:
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data) - start))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            end = len(data) if limit is None else min(len(data), start + limit)
            piece = 4096 if live else 65536
            try:
                while start < end:
                    part = data[start : min(start + piece, end)]
                    self.wfile.write(part)
                    start += len(part)
                    if live:
                        sent_live[0] = start
                        time.sleep(len(part) / live_bytes_per_second)
            except OSError:
                pass  # the other side went away
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/stream", starts
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def stalling_server(path: Path, seconds: float, stalled_at: float):
    """Sends a file of so many seconds at its own pace, and nothing more after `stalled_at`; the connection stays open, and no other one gets anything."""
    data, over, stalled = path.read_bytes(), threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if stalled.is_set():
                over.wait()
                return
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            for start in range(0, int(len(data) * stalled_at / seconds), 1880):
                self.wfile.write(data[start : start + 1880])
                time.sleep(1880 * seconds / len(data))
            stalled.set()
            over.wait()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/live"
    finally:
        over.set()
        server.shutdown()
