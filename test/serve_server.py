"""`aha serve` in this process, for tests: `with serving(model, "--max_sessions", 4) as server: Client(server.address)`."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from waiting import LONG, wait_for

from aha.api import Highlighter
from aha.cli.commands import _serve_parser, online_of
from aha.core.fusion import fusion_of
from aha.core.hosts import listen
from aha.serve.command import check, make_sessions, server_of


@contextmanager
def serving(model: Highlighter, *argv: object) -> Iterator[SimpleNamespace]:
    parser = argparse.ArgumentParser()
    _serve_parser(parser)
    args = parser.parse_args([*map(str, argv), "--port", "0", "--window", "256"])
    listening = listen("127.0.0.1", 0)
    with TemporaryDirectory() as folder:
        sessions = make_sessions(args, lambda: model, fusion_of(args), online_of(args), check(args), Path(args.state or folder))
        server = server_of(sessions, args.host)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive(), what="the server has started")
        port = listening.getsockname()[1]
        try:
            yield SimpleNamespace(address=f"http://127.0.0.1:{port}", port=port, sessions=sessions, server=server)
        finally:
            server.should_exit = True
            thread.join(LONG)
            listening.close()
        assert not thread.is_alive() and not sessions.engine.runs
