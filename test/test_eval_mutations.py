"""A tenth of the mutated evaluation files of `python test/mutate_eval.py`: refused with one sentence or scored, no traceback, no hang."""

from __future__ import annotations

import json
import subprocess
import sys

from paths import REPO

CASES = 132


def test_mutated_evaluation_files():
    """In a process of its own: damaged HDF5 reaches C code."""
    command = [sys.executable, str(REPO / "test" / "mutate_eval.py"), "--runs", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["refused"] + found["accepted"] == CASES
    assert found["refused"] > CASES // 3 and found["accepted"] > CASES // 20  # mutations bite, and not only at the first byte
    assert found["peak_MB"] < 2000
