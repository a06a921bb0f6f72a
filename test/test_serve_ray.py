"""`aha serve --ray` with two replicas on this machine: each session stays in one of them, over HTTP and WebSocket."""

from __future__ import annotations

import argparse
import json
import os

import numpy as np
import pytest
from paths import REPO
from waiting import free_port

from aha.cli.commands import _serve_parser, online_of
from aha.core.fusion import fusion_of
from aha.serve.client import Client

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'ray[data,serve]')")
serve = pytest.importorskip("ray.serve", reason="ray serve is not installed (pip install 'ray[data,serve]')")


def test_sessions_stay_in_their_replica():
    """Ray gives replicas random ids, and the hash of those decides where a session lives: sessions are opened until both have one."""
    from aha.serve.on_ray import NAME, application

    port = free_port()
    parser = argparse.ArgumentParser()
    _serve_parser(parser)
    args = parser.parse_args(["--replicas", "2", "--max_sessions", "64", "--window", "256", "--device", "cpu"])
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "LLaVA_NeXT")])}},
    )  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(args, fusion_of(args), online_of(args), 0), name=NAME, route_prefix="/")
        client = Client(f"http://127.0.0.1:{port}")
        image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)

        def beside(session) -> frozenset[str]:
            """Ids of the sessions of the replica that this one's requests are led to."""
            return frozenset(one["id"] for one in json.loads(client.call("GET", "/sessions", None, session.headers)))

        sessions = []
        while len(sessions) < 4 or len({beside(session) for session in sessions}) == 1:
            assert len(sessions) < 64, "64 sessions, and all in one replica"  # by chance once in 2**63
            sessions.append(client.session("red things", id=f"session-number-{len(sessions)}", live=False))
        together = {beside(session) for session in sessions}
        assert len(together) == 2 and sum(len(one) for one in together) == len(sessions)
        for _ in range(3):
            for session in sessions:
                session.send(image)
                assert session.about()["id"] == session.id  # by HTTP, another connection
        for session in sessions:
            here = beside(session)
            assert here in together and session.id in here  # each still where it was opened
        for session in sessions:
            messages = list(session.finish())
            assert [m["time"] for m in messages if m["event"] == "score"] == [0, 0.5, 1] and messages[-1]["event"] == "end"
    finally:
        serve.shutdown()
        ray.shutdown()
