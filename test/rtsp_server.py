"""An RTSP server with a live picture, as an IP camera: GStreamer's, by its Python binding.

    apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
    /usr/bin/python3 test/rtsp_server.py PORT            # rtsp://127.0.0.1:PORT/live

Run by a Python that has the binding (Debian's own), which is seldom the one that runs the tests: `python_with_gstreamer` finds it.
"""

from __future__ import annotations

import subprocess
import sys

NEEDS = ("videotestsrc", "x264enc", "rtph264pay")
PICTURE = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=128,height=96,framerate=10/1"
CODING = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 pt=96"


def python_with_gstreamer() -> str | None:
    """A Python that can serve; None where there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if subprocess.run([python, __file__, "--check"], capture_output=True, timeout=60, check=False).returncode == 0:
                return python
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


def main(port: str) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    if port == "--check":
        sys.exit(any(Gst.ElementFactory.find(name) is None for name in NEEDS))
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory.set_launch(f"( {PICTURE} ! {CODING} )")
    factory.set_shared(True)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(sys.argv[1])
