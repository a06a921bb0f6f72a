"""`aha serve`: the engine of `aha watch` for programs, over HTTP and WebSocket.

    aha serve                                              # http://127.0.0.1:8420, its description at /docs
    AHA_SERVE_TOKEN=... aha serve --host 0.0.0.0 --model mmduet-7b --max_sessions 32
    aha serve --ray --replicas 4                           # on the machines of a Ray cluster, a replica on each GPU

Sessions share one model and one batch. The token is read from the environment or .env; without one the server stays on this machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aha.api import Highlighter
from aha.core.extras import need
from aha.core.flags import add_flags, from_args
from aha.core.fusion import Fusion
from aha.core.hosts import Hosts, check_secret, listen, shown_host
from aha.core.memory import few_arenas, keep_for_good
from aha.errors import UserError
from aha.highlights.online import OnlineSettings
from aha.serve.limits import PORT, TOKEN, Limits
from aha.watch.command import settings_of, stream_flags

if TYPE_CHECKING:
    import uvicorn

    from aha.serve.sessions import Sessions


def serve_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=PORT, help="port on this machine (default %(default)s)")
    parser.add_argument(
        "--host", nargs="+", default=["127.0.0.1"], metavar=("ADDRESS", "NAME"),
        help="address to listen on, and further names by which the server is called; 0.0.0.0 lets others in, and needs a token in the "
        f"environment variable {TOKEN} (default 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--state", metavar="DIR", help="folder of suspended sessions; at the end open ones are suspended there (default: a temporary one)"
    )
    parser.add_argument(
        "--ray", action="store_true", help="run under Ray Serve, on the cluster of RAY_ADDRESS or a new one on this machine"
    )
    parser.add_argument(
        "--replicas", type=int, default=1, help="of the model under Ray, each on a GPU where there are (default %(default)s)"
    )
    add_flags(parser.add_argument_group("what clients may have"), Limits)
    stream_flags(parser.add_argument_group("streams: defaults of all sessions"))
    parser.set_defaults(raw_size=None, raw_fps=25.0, live=False)  # flags of `aha watch` that a session sets for itself here


def check(args: argparse.Namespace) -> Limits:
    """The limits of the flags. Raises UserError for values that cannot be, and for a server open to others without a token."""
    for name in ("frame_fps", "buffer_seconds", "silent_seconds"):
        if not 0 < getattr(args, name) < float("inf"):
            raise UserError(f"--{name} must be above 0, not {getattr(args, name)}.")
    if args.replicas < 1:
        raise UserError(f"--replicas must be at least 1, not {args.replicas}.")
    check_secret(args.host[0], os.environ.get(TOKEN), "token", TOKEN, "server")
    return from_args(Limits, args)


def run_serve(args: argparse.Namespace, load: Callable[[], Highlighter], fusion: Fusion, online: OnlineSettings) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError for what cannot work, before the model is loaded where that can be known."""
    need("fastapi_offline", "serve", "aha serve")
    few_arenas()  # a thread for each session
    limits = check(args)
    if args.ray:
        need("ray", "ray", "aha serve --ray")
        from aha.serve.on_ray import run_on_ray

        run_on_ray(args, fusion, online)
        return
    folder = Path(args.state or tempfile.mkdtemp(prefix="aha-serve-"))
    listening = listen(args.host[0], args.port)
    try:
        sessions = make_sessions(args, load, fusion, online, limits, folder)
        server = server_of(sessions, args.host)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn takes them while it runs, and raises them again at its end
            signal.signal(number, lambda *_: None)
        listening.listen()  # before the next line is printed: whoever reads it may connect at once
        print(f"Aha! serves on http://{shown_host(args.host[0])}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        server.run(sockets=[listening])
        if sessions.engine.error is not None:
            raise RuntimeError("the engine failed; its traceback is above") from sessions.engine.error
    finally:
        listening.close()
        if not args.state:
            shutil.rmtree(folder, ignore_errors=True)


def server_of(sessions: Sessions, names: Sequence[str]) -> uvicorn.Server:
    """The HTTP server, not yet running. names: the host names that clients may call it by; the first is its address."""
    import uvicorn

    from aha.serve.app import create_app

    limits = sessions.limits
    config = uvicorn.Config(
        create_app(sessions, Hosts(names), os.environ.get(TOKEN)), log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=3, limit_concurrency=64 + 8 * limits.max_sessions,
        ws_max_size=limits.picture_bytes, ws_ping_interval=20, ws_ping_timeout=20, ws_per_message_deflate=False,
    )  # fmt: skip
    # uvicorn says this of every handshake that is answered with 401, as if something were wrong
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing handshake" not in record.getMessage())
    server = uvicorn.Server(config)
    sessions.engine.failed = lambda: setattr(server, "should_exit", True)
    return server


def make_sessions(
    args: argparse.Namespace, load: Callable[[], Highlighter], fusion: Fusion, online: OnlineSettings, limits: Limits, folder: Path
) -> Sessions:
    """Load the model and start the engine's thread; sessions can then be created. folder: of suspended sessions. Raises UserError."""
    from aha.serve.engine import Engine
    from aha.serve.sessions import Sessions
    from aha.watch.engine import Watch

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--state {folder} cannot be made ({error.strerror}); choose another folder.") from error
    model, settings = load(), settings_of(args, fusion, online)
    engine = Engine(
        lambda emit, seen: Watch(
            model, args, settings, emit, max_streams=limits.max_sessions, named=False, run_id=uuid.uuid4().hex[:8], seen=seen
        )
    )
    keep_for_good()
    return Sessions(engine, args, limits, folder, keep_all=args.state is not None)
