"""`aha serve --ray`: the same application on many machines, by Ray Serve; a replica is a model with its engine.

    ray start --head                       # on the first machine; `ray start --address HEAD:6379` on the others
    RAY_ADDRESS=auto AHA_SERVE_TOKEN=... aha serve --ray --replicas 4 --host 0.0.0.0 --model mmduet-7b --state /shared/sessions

A session lives in one replica. Which one is decided by the header X-Session-Id, by a hash that all proxies share (Ray's consistent-hash
router): who sends it with every request of a session, as aha.serve.client does, is always led there. Sessions of a replica that dies are
gone; suspended ones go on in another where all see the folder of --state. /metrics and the list of sessions are those of one replica.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

from aha.api import load_choice
from aha.core.flags import from_args
from aha.core.fusion import Fusion
from aha.core.hosts import Hosts, shown_host
from aha.highlights.online import OnlineSettings
from aha.scoring.model_choice import ModelChoice
from aha.serve.command import make_sessions
from aha.serve.limits import TOKEN, Limits

NAME = "aha"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def application(args: argparse.Namespace, fusion: Fusion, online: OnlineSettings, gpus: float) -> Any:
    """What `ray.serve.run` takes."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    limits, token = from_args(Limits, args), os.environ.get(TOKEN)

    def build() -> Any:  # in each replica
        from aha.serve.app import create_app

        folder = Path(args.state or tempfile.mkdtemp(prefix="aha-serve-"))
        sessions = make_sessions(args, lambda: load_choice(from_args(ModelChoice, args)), fusion, online, limits, folder)
        return create_app(sessions, Hosts(args.host), token)

    replica = serve.deployment(
        serve.ingress(build)(), name=NAME, num_replicas=args.replicas, max_ongoing_requests=64 + 8 * limits.max_sessions,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus}, graceful_shutdown_timeout_s=5,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs={"num_fallback_replicas": 0}),
    )  # fmt: skip
    return replica.bind()


def run_on_ray(args: argparse.Namespace, fusion: Fusion, online: OnlineSettings) -> None:
    """Serve on the cluster named by RAY_ADDRESS, or on one made on this machine, until Ctrl-C or SIGTERM."""
    import ray
    from ray import serve

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0 and not (from_args(ModelChoice, args).device or "cuda").startswith("cpu")
    try:
        serve.start(proxy_location="EveryNode", http_options={"host": args.host[0], "port": args.port})
        serve.run(application(args, fusion, online, 1 if on_gpu else 0), name=NAME, route_prefix="/")
        print(f"Aha! serves on http://{shown_host(args.host[0])}:{args.port} with {args.replicas} replicas (Ctrl-C ends it)", flush=True)
        stopped.wait()
    finally:
        serve.shutdown()
        if started_here:
            ray.shutdown()
