"""A machine for scripts/reproduce.sh: tiny weights under the published names on a hub here, tiny data sets in the official layouts."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from hub import Hub
from paths import REPO, shared_fixture
from tiny_benchmarks import write_benchmark, write_hisum, write_tvsum

from aha.scoring.known_models import BASE_7B

ADAPTER = "aiden200/aha"
SEE = Path("bin/nvidia-smi")


def published_hub(folder: Path) -> Hub:
    """The published repositories, tiny; `folder` takes the adapters, which name the published base."""
    found = {BASE_7B: shared_fixture("reference/llava-onevision-qwen2-tiny-ov")}
    for name, source in ((ADAPTER, "aha-adapter"), ("wangyueqian/MMDuet", "mmduet-adapter")):
        found[name] = Path(shutil.copytree(shared_fixture(f"reference/{source}"), folder / source))
        settings = found[name] / "adapter_config.json"
        settings.chmod(0o644)
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": BASE_7B}))
    return Hub(found)


def write_data(root: Path, names: tuple[str, ...] = ("tvsum", "hisum", "charades", "youcook2", "magqa"), videos: int = 5) -> Path:
    """The data sets of the tables; of the last three one video is missing."""
    for name in names:
        if name == "tvsum":
            write_tvsum(root / name, videos)
        elif name == "hisum":
            write_hisum(root / name)
        else:
            write_benchmark(root / ("shot2story" if name == "magqa" else name), name)
    return root


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """Variables of a process that finds the hub, and nothing that was downloaded before."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AHA_", "OPENAI_"))}
    return kept | {
        "PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}", "AHA_PYTHON": sys.executable, "HF_HOME": str(home), "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "NUM_GPUS": "1", "WANDB_MODE": "disabled", **more,
    }  # fmt: skip


def fake_card(folder: Path, line: str) -> str:
    """PATH with an nvidia-smi that prints `line` (name, total MiB, free MiB, driver)."""
    program = folder / SEE
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "{line}"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"
