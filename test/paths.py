"""Where tests find the golden data: `$AHA_SHARED`, or `shared/` beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("AHA_SHARED", REPO.parent / "shared"))


def shared_fixture(relative: str) -> Path:
    """Path of `fixtures/<relative>` in the golden data; skips the calling test with a clear reason where it is not there."""
    path = SHARED / "fixtures" / relative
    if not path.exists():
        pytest.skip(f"golden data {relative} not found (looked in {SHARED}; set AHA_SHARED)", allow_module_level=True)
    return path
