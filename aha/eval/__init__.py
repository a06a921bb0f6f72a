"""Benchmark numbers: numpy over prediction files; neither torch nor a video decoder.

A benchmark is one module, which holds its `TASK` (task.py) and is its own command (`python -m aha.eval.tvsum`), and one line of MODULES
below. The proactive benchmarks share one module and command (proactive.py), which holds theirs in TASKS.

command.py          what the commands share: flags, selection, comparison, report; questions.py: what the question benchmarks share
annotations.py data_hisum.py community.py summe_truth.py shots.py proactive_files.py    readers of published files
tvsum_protocols.py tvsum_h5.py h5_numbers.py grids.py baselines.py    protocols, grids and baseline rows of TVSum and the h5 files
published.py        published rows beside ours
judge.py judge_batch.py    a language model as judge
grid_search.py kfold.py importers.py ablate.py    further commands: fusion weights, k-fold runs, other people's files, ablations
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
