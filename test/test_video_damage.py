"""Damaged, cut off and mislabelled video files: frames or one sentence, never a crash, a hang or a wrong frame."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from paths import REPO


def test_mutated_videos_end_in_frames_or_in_one_sentence():
    # In a process of its own, so that a crash or a hang inside FFmpeg is a failed test and not the end of all tests.
    command = [sys.executable, str(REPO / "test" / "mutate_videos.py"), "--count", "64", "--limit", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)})
    assert done.returncode == 0, done.stdout + done.stderr
    total = re.search(r"^all +(\d+) +(\d+) +(\d+) +0 +0$", done.stdout, re.MULTILINE)
    assert total, done.stdout
    files, frames, errors = map(int, total.groups())
    assert files == 64 == frames + errors
    assert re.search(r"^intact +(\d+) +\1 +0 +0 +0$", done.stdout, re.MULTILINE), "an intact file was refused"
    for kind in ("zero bytes", "text", "random bytes", "playlist of other files", "audio only"):
        assert re.search(rf"^{kind} +(\d+) +0 +\1 +0 +0$", done.stdout, re.MULTILINE), f"{kind}: something was read"
