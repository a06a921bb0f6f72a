"""The Ray engine on a local cluster of two workers, one of them killed in the middle."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from paths import REPO, shared_fixture
from test_score import official_tvsum

from aha import score
from aha.scoring import ray_engine as score_ray

ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'ray[data]')")


def test_two_workers_one_killed(tmp_path, monkeypatch):
    folder = shared_fixture("reference")
    root = official_tvsum(tmp_path / "tvsum", 10)
    flags = [
        "--llm_pretrained", str(folder / "llava-onevision-qwen2-tiny-ov"), "--lora_pretrained", str(folder / "aha-adapter"),
        "--dataset", "tvsum", "--data_root", str(root), "--frame_fps", "2",
    ]  # fmt: skip
    score.main([*flags, "--output", str(tmp_path / "alone.json")])
    killed: list[int] = []
    seen: set[int] = set()
    real = score_ray.score_items_on_ray

    def watched(choice, config, workers, items, trained_on, write):
        def write_and_kill(record):
            write(record)
            seen.add(record["worker"])
            if not killed:
                killed.append(record["worker"])
                os.kill(record["worker"], signal.SIGKILL)  # a process that this test started

        real(choice, config, workers, items, trained_on, write_and_kill)

    monkeypatch.setattr(score_ray, "score_items_on_ray", watched)
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "LLaVA_NeXT")])}},
    )  # fmt: skip
    try:
        score.main([*flags, "--output", str(tmp_path / "ray.json"), "--engine", "ray", "--workers", "2", "--device", "cpu"])
    finally:
        ray.shutdown()
    assert killed and seen - set(killed)
    alone, together = (json.loads((tmp_path / name).read_text()) for name in ("alone.json", "ray.json"))
    assert together == alone and len(alone) == 10
    assert not list(Path(tmp_path).glob("*.parts-*"))
