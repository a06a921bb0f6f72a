"""Benchmark numbers: numpy over prediction files; neither torch nor a video decoder.

A benchmark is one module that holds its `TASK` (aha.eval.task) and is its own command (`python -m aha.eval.tvsum`), and one line here. The
proactive benchmarks share a module and a command, which holds theirs in TASKS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from aha.errors import UserError

if TYPE_CHECKING:
    from aha.eval.task import Task

MODULES = {  # name of the benchmark (`--dataset NAME`, datasets/NAME) -> module
    "tvsum": "aha.eval.tvsum",
    "hisum": "aha.eval.hisum",
    "charades": "aha.eval.charades",
    "qvh": "aha.eval.qvhighlights",
    "youtube_highlights": "aha.eval.youtube_highlights",
    "youcook2": "aha.eval.youcook2",
    "magqa": "aha.eval.magqa",
    "summe": "aha.eval.summe",
    "ovo_bench": "aha.eval.proactive",
    "streamingbench_po": "aha.eval.proactive",
    "streamingbench_mcq": "aha.eval.proactive",
    "proactivevideoqa": "aha.eval.proactive",
}


def load_task(name: str) -> Task:
    """The Task of a benchmark; its module is loaded only now. Raises UserError for an unknown name."""
    if name not in MODULES:
        raise UserError(f"{name} is none of the benchmarks {', '.join(MODULES)}.")
    module = import_module(MODULES[name])
    return module.TASKS[name] if MODULES[name] == "aha.eval.proactive" else module.TASK
