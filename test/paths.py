"""Where tests find the golden data: `data/` beside this file (each folder's README.md defines its numbers)."""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
DATA = REPO / "test" / "data"
sys.path[:0] = [str(REPO), str(REPO / "LLaVA_NeXT")]  # a test or golden.py by itself runs this checkout, installed or not


def shared_fixture(relative: str) -> Path:
    """Path of `relative` in the golden data. The data are part of the repository: a file that is not there is an error, never a skip."""
    path = DATA / relative
    if not path.exists():
        raise FileNotFoundError(f"golden data {path} is missing from this checkout (git status shows what was removed)")
    return path
