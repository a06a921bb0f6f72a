"""What is wrong with a command line is said before a model is loaded, and no output folder is made before there is something to write."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from highlights_media import make_video
from paths import shared_fixture

from aha import cli, merge
from aha.errors import UserError
from aha.scoring.model_choice import ModelChoice


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a video, a text file and a full folder; loading a model there is a failure of the test."""

    def loaded(self):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ModelChoice, "load", loaded)
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", seconds=1, fps=4, size=(64, 64), sound=False)
    (tmp_path / "text.txt").write_text("no video")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    return tmp_path


BAD = [
    ("highlights clip.mp4 other.mp4 --query x --output out", "other.mp4 does not exist"),
    ("highlights text.txt --query x --output out", "text.txt"),
    ("highlights clip.mp4 --output out", "what is looked for"),
    ("highlights clip.mp4 --query x --output text.txt", "text.txt is a file"),
    ("highlights clip.mp4 --query x --output full", "not empty"),
    ("highlights clip.mp4 clip.mp4 --query x --output full", "not empty"),
    ("highlights clip.mp4 --query x --output out --keep_features text.txt", "text.txt is a file"),
    ("highlights clip.mp4 --query x --output out --top 0", "at least 1"),
    ("highlights clip.mp4 --query x --output out --smooth_frames 2", "odd"),
    ("highlights clip.mp4 --query x --output out --max_num_frames 0", "at least 1"),
    ("highlights clip.mp4 --query x --output out --export mov", "mov"),
    ("score --model demo --video other.mp4 --query x --output out/scores.json", "other.mp4"),
    ("score --model demo --video clip.mp4 --query x --output full", "full is a folder"),
    ("score --model demo --video clip.mp4 --query x --output text.txt/scores.json", "text.txt"),
    ("score --model demo --dataset tvsum --output full", "full is a folder"),
    ("baseline random --dataset tvsum --output full", "full is a folder"),
    ("ablate --llm_pretrained demo --output text.txt", "text.txt is a file"),
    ("eval tvsum --predictions text.txt --output full", "full is a folder"),
    ("eval tvsum --predictions text.txt --report text.txt", "text.txt is a file"),
    ("watch other.mp4 --query x", "other.mp4"),
    ("demo --host 0.0.0.0", "AHA_PASSWORD"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_said_first_and_makes_nothing(line, words, place, monkeypatch):
    if line.startswith("demo"):
        pytest.importorskip("gradio", reason="gradio is not installed")
    monkeypatch.delenv("AHA_PASSWORD", raising=False)
    with pytest.raises(UserError) as told:
        cli.run(line.split())
    assert words in str(told.value) and "\n" not in str(told.value)
    assert sorted(os.listdir(place)) == ["clip.mp4", "full", "text.txt"] and os.listdir(place / "full") == ["mine.txt"]


def test_a_taken_port_is_said_before_the_model_is_loaded(place):
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            cli.run(["demo", "--port", str(taken.getsockname()[1])])


@pytest.mark.parametrize("videos", [["clip.mp4"], ["clip.mp4", "copy.mp4"]], ids=["one", "several"])
def test_a_model_that_cannot_be_loaded_leaves_no_folder(videos, place, monkeypatch):
    (place / "copy.mp4").write_bytes((place / "clip.mp4").read_bytes())

    def missing(self):
        raise UserError("the weights are not here.")

    monkeypatch.setattr(ModelChoice, "load", missing)
    with pytest.raises(UserError, match="not here"):
        cli.run(["highlights", *videos, "--query", "x", "--output", "out"])
    assert not (place / "out").exists()


def test_merge_makes_its_folder_when_the_model_is_there(tmp_path):
    base, adapter = shared_fixture("reference/llava-onevision-qwen2-tiny-ov"), shared_fixture("reference/aha-adapter")
    with pytest.raises(UserError):
        merge.main(["--llm_pretrained", str(base), "--lora_pretrained", str(tmp_path / "none"), "--output", str(tmp_path / "merged")])
    assert not (tmp_path / "merged").exists()
    merge.main(["--llm_pretrained", str(base), "--lora_pretrained", str(adapter), "--output", str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "config.json").is_file() and not (tmp_path / "merged" / ".unfinished").exists()
