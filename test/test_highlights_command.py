"""`aha highlights`: the files it writes, on every kind of video; bad input as one sentence with exit code 2; the Python API as documented."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from highlights_media import make_video, reel_contents
from paths import REPO, shared_fixture
from waiting import LONG, wait_for

from aha import cli
from aha.api import Highlighter, load
from aha.cli import commands
from aha.core.fusion import Fusion
from aha.core.prediction import read_predictions
from aha.errors import UserError
from aha.highlights.result import FILES
from aha.scoring import offline
from aha.video.reader import probe


@pytest.fixture(scope="module")
def model() -> Highlighter:
    return load(shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter"), device="cpu")


@pytest.fixture
def aha(model, monkeypatch):
    """`aha ...` in this process, with the tiny model."""
    monkeypatch.setattr(commands, "load_model", lambda args, videos=(): model)

    def run(*arguments):
        forced = ["--force"] if arguments[0] == "highlights" and "--scores" not in arguments else []  # random weights see nothing anywhere
        cli.run([str(argument) for argument in arguments] + forced)

    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    make_video(path, seconds=16, fps=10)
    return path


def test_all_files_are_written_and_agree(aha, clip, tmp_path, capsys):
    aha("highlights", clip, "--query", "a red star", "--budget", "0.3", "--output", tmp_path / "out", "--frame_fps", "2")
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == sorted(FILES)
    highlights = json.loads((out / "highlights.json").read_text())
    segments = json.loads((out / "segments.json").read_text())
    assert [h["rank"] for h in highlights] == list(range(1, len(highlights) + 1))
    assert all(set(h["why"]) == {"informative", "relevance", "uncertainty", "sentence"} for h in highlights)
    assert segments[0]["start"] == 0 and segments[-1]["end"] == pytest.approx(16.0)
    assert len(next(read_predictions(out / "scores.json")).samples(Fusion()).scores) == 32
    reel = probe(out / "reel.mp4")
    assert reel.duration == pytest.approx(sum(h["end"] - h["start"] for h in highlights), abs=0.01)
    assert 0 < reel.duration <= 0.3 * 16 + 0.01
    assert (out / "timeline.png").read_bytes()[:4] == b"\x89PNG" and (out / "chapters.vtt").read_text().startswith("WEBVTT")
    page = (out / "report.html").read_text()
    assert "a red star" in page and not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere
    assert "wrote" in capsys.readouterr().out


def test_several_queries_encode_the_video_once(aha, model, clip, tmp_path, monkeypatch):
    embedded = []
    tower = model.model.tower_features
    monkeypatch.setattr(model.model, "tower_features", lambda frames: embedded.append(len(frames)) or tower(frames))
    aha("highlights", clip, "--query", "one", "--query", "two things!", "--top", "2", "--output", tmp_path, "--no_reel", "--speak")
    assert sum(embedded) == 16
    assert sorted(os.listdir(tmp_path)) == ["1_one", "2_two-things"]
    scores = [next(read_predictions(folder / "scores.json")).samples(Fusion()).scores for folder in sorted(tmp_path.iterdir())]
    assert not np.allclose(*scores)
    for folder in tmp_path.iterdir():
        highlights = json.loads((folder / "highlights.json").read_text())
        assert len(highlights) == 2 and not (folder / "reel.mp4").exists()


def test_a_long_video_is_encoded_into_one_block(model, clip, monkeypatch):
    """Pieces kept between the tower's large temporary ones fragmented the heap: 6 GB for 3 hours. A wrong length makes the block grow."""
    whole = model.encode(clip, fps=5)
    kept, alive = [], []

    def project(features, project=model.model.project):
        kept[:] = [piece for piece in kept if piece() is not None]
        alive.append(len(kept))
        tokens = project(features)
        kept.append(weakref.ref(tokens))
        return tokens

    monkeypatch.setattr(model.model, "project", project)
    monkeypatch.setattr(offline, "probe", lambda video: replace(probe(video), duration=2.0))
    again = model.encode(clip, fps=5)
    assert len(again) == len(again.visual_FKH) == 80 and len(alive) == 5 and max(alive) <= 1
    assert (again.visual_FKH == whole.visual_FKH).all() and np.array_equal(again.features_FH, whole.features_FH)


@pytest.mark.parametrize("name", ["landscape", "portrait"])
def test_the_public_videos(aha, tmp_path, name):
    video = shared_fixture(f"reference/videos/{name}.mp4")
    aha("highlights", video, "--query", "what happens?", "--output", tmp_path, "--segmentation", "kernel", "--titles")
    source, reel = probe(video), probe(tmp_path / "reel.mp4")
    assert reel.duration <= 0.15 * source.duration + 0.01 and (reel.width > reel.height) == (source.width > source.height)


def test_a_very_short_budget_and_one_frame_still_give_a_reel(aha, tmp_path):
    make_video(tmp_path / "one.mp4", seconds=0.1, fps=10, sound=False)
    aha("highlights", tmp_path / "one.mp4", "--query", "x", "--output", tmp_path / "out")
    pictures, _, _ = reel_contents(tmp_path / "out" / "reel.mp4")
    assert [number for _, number, _ in pictures] == [0]


def test_bad_input_is_one_sentence(aha, clip, tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        voice = out.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(voice.encode(frame))
        out.mux(voice.encode(None))
    with av.open(str(tmp_path / "no_frames.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        out.mux(stream.encode(None))
    (tmp_path / "text.mp4").write_text("not a video")
    unknown = bytearray(clip.read_bytes())
    at = unknown.rfind(b"avc1")
    unknown[at : at + 4] = b"zzzz"
    (tmp_path / "unknown.mp4").write_bytes(unknown)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    out = tmp_path / "out"
    cases = [
        ((tmp_path / "missing.mp4", "--query", "x", "--output", out), "missing.mp4"),
        ((tmp_path / "sound.mp4", "--query", "x", "--output", out), "no video"),
        ((tmp_path / "no_frames.mp4", "--query", "x", "--output", out), "no_frames.mp4"),
        ((tmp_path / "text.mp4", "--query", "x", "--output", out), "text.mp4"),
        ((tmp_path / "unknown.mp4", "--query", "x", "--output", out), "unknown.mp4"),
        ((clip, "--query", "x" * 10_000, "--output", out), "10,000 characters"),
        ((clip, "--query", "  ", "--output", out), "query is empty"),
        ((clip, "--query", "x", "--query", "x", "--output", out), "twice"),
        ((clip, "--query", "x", "--output", tmp_path / "full"), "--overwrite"),
        ((clip, "--query", "x", "--output", clip), "is a file"),
        ((clip, "--query", "x", "--output", out, "--budget", "1.5"), "budget"),
        ((clip, "--query", "x", "--output", out, "--min_frames", "0"), "min_frames"),
        ((clip, "--query", "x", "--output", out, "--alpha", "nan"), "alpha"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserError) as told:
            aha("highlights", *arguments)
        assert words in str(told.value), (arguments, told.value)
        assert "\n" not in str(told.value)
    assert not (out / "reel.mp4").exists() and os.listdir(tmp_path / "full") == ["mine.txt"]


def test_nothing_above_the_threshold_writes_no_reel(aha, clip, tmp_path):
    aha("highlights", clip, "--query", "x", "--min_score", "2", "--output", tmp_path)
    assert json.loads((tmp_path / "highlights.json").read_text()) == []
    assert not (tmp_path / "reel.mp4").exists() and (tmp_path / "report.html").exists()


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "aha.cli", "highlights", "x.mp4", "--query", "x" * 3000, "--output", str(tmp_path / "o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: the query has 3,000 characters") and "Traceback" not in done.stderr
    for name in ("highlights", "watch", "demo"):
        with pytest.raises(SystemExit) as ended:
            cli.run([name, "--help"])
        assert ended.value.code == 0


# the command, which waits for its end in the middle of the reel
STOPS_IN_THE_REEL = """
import time
from aha.cli import main
from aha.highlights.reel import _PictureWriter

def write(writer, *given, real=_PictureWriter.write):
    real(writer, *given)
    while writer._last_ticks > 60_000:  # two thirds of a second of the reel
        time.sleep(1)

_PictureWriter.write = write
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_no_half_reel(tmp_path, number):
    make_video(tmp_path / "clip.mp4", seconds=10, size=(64, 48), sound=False)
    base, adapter = (str(shared_fixture(f"reference/{part}")) for part in ("llava-onevision-qwen2-tiny-ov", "aha-adapter"))
    out = tmp_path / "out"
    arguments = [
        "highlights",
        str(tmp_path / "clip.mp4"),
        "--query",
        "x",
        "--budget",
        "1",
        "--frame_fps",
        "0.5",
        "--output",
        str(out),
        "--force",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS_IN_THE_REEL, *arguments, "--llm_pretrained", base, "--lora_pretrained", adapter, "--device", "cpu"],
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what runs in the background
    )  # fmt: skip
    wait_for(lambda: list(out.glob(".reel.*")) or process.poll() is not None, what="the reel is being written")
    process.send_signal(number)
    process.communicate(timeout=LONG)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert [path.name for path in out.glob(".*")] == [".unfinished"] and not (out / "reel.mp4").exists()  # the mark: not done yet


def test_importing_is_light():
    code = "import aha.api, aha.cli, sys; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'gradio', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def documented_snippet() -> str:
    """The Python API's five lines as the README has them, after the line `<!-- api snippet -->`."""
    before, marker, after = (REPO / "README.md").read_text(encoding="utf-8").partition("<!-- api snippet -->\n")
    blocks = re.findall(r"```python\n(.*?)```", after if marker else before, re.DOTALL)
    return next((block for block in blocks if "from aha.api import load" in block), "")


def test_the_readme_snippet_runs_as_written(clip, tmp_path, monkeypatch, capsys):
    snippet = documented_snippet()
    assert snippet, "README.md has no Python block with `from aha.api import load`"
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 5
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert "Highlight(rank=1" in capsys.readouterr().out
