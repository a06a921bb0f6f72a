"""What a person sees in a terminal of 80 columns: bars, tables and sentences fit, nothing is coloured under NO_COLOR, the reel has a bar."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from highlights_media import make_video
from paths import REPO

from aha.core.prediction import Prediction, score_rows, write_predictions

COLUMNS = 80


def in_terminal(folder, *words: str) -> str:
    """Standard output and error of `aha ...`, run in `folder` in a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color", "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'LLaVA_NeXT'}"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "aha.cli", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 65536):
                said += piece
        except OSError:  # the terminal's other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0, said.decode()
    return said.decode()


def fits(said: str) -> bool:
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-LN-Za-ln-z]", "", said))  # moves of the cursor: two bars below each other
    return max(map(len, lines)) <= COLUMNS


@pytest.fixture
def folder(tmp_path):
    make_video(tmp_path / "clip.mp4", seconds=6, fps=10, size=(96, 64), sound=False)
    times = np.arange(12) / 2
    curve = 0.5 + 0.4 * np.sin(times)
    rows = score_rows(times, 1 - curve, curve, 0.1 + 0 * curve)
    query = "a wish in so many words that they do not fit on one line of a terminal, and on"
    write_predictions(
        tmp_path / "s.json",
        [
            Prediction.of_scores(
                "clip", query, 6.0, 2.0, list(range(0, 60, 5)), rows, [], evidence={"strength": 0.4, "level": 0.1}
            )
        ],
    )  # fmt: skip
    return tmp_path


def test_highlights_in_a_terminal(folder):
    said = in_terminal(folder, "highlights", "clip.mp4", "--scores", "s.json", "--curve_video", "--output", "out")
    assert "\x1b[" not in re.sub(r"\x1b\[A", "", said) and fits(said)
    assert "reel: 100%" in said and "curve video: 100%" in said and "evidence +0.40" in said
    assert {"reel.mp4", "curve.mp4", "poster.jpg"} <= set(os.listdir(folder / "out"))


@pytest.mark.parametrize(
    "command", ["models", "data prepare", "eval tvsum --protocols corr_1fps f1_official60 aha_1fps_mean --random_runs 1 --limit 4"]
)
def test_tables_in_a_terminal(command, tmp_path):
    said = in_terminal(tmp_path, *command.split())
    assert not re.search(r"\x1b\[[0-9;]*m", said) and fits(said), said
