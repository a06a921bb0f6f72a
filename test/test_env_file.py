""".env is read by every command, before what it imports looks at the environment."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys

import pytest
from paths import REPO
from test_data_mixture import make_video

from aha.core.environment import load_env

CHECKPOINTS = REPO / "aha/demo/checkpoints"


def command(*arguments, cwd, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AHA_"))}
    environment |= {"PYTHONPATH": f"{REPO}:{REPO / 'LLaVA_NeXT'}", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True)


def test_score_finds_a_model_in_the_hub_cache_that_env_names(tmp_path):
    for name in ("llava-onevision-qwen2-demo-ov", "aha-demo"):
        repository = tmp_path / "home" / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("1234")
        shutil.copytree(CHECKPOINTS / name, repository / "snapshots" / "1234")
    make_video(tmp_path / "v.mp4", 2)
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbf" + f"HF_HOME={tmp_path / 'home'}\nHF_HUB_OFFLINE=1\nHF_TOKEN=\n".encode())
    arguments = ["--llm_pretrained", "someone/llava-onevision-qwen2-demo-ov", "--lora_pretrained", "someone/aha-demo"]
    done = command("-m", "aha.score", *arguments, "--video", "v.mp4", "--query", "x", "--output", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.json").exists()


@pytest.mark.parametrize("run", ["from aha.errors import run_command as run", "from aha.core.environment import run_rank as run"])
def test_every_kind_of_command_reads_it_first(tmp_path, run):
    (tmp_path / ".env").write_text("AHA_TEST=from the file\nHF_HOME=there\n")
    code = f"import os, sys\n{run}\nsys.argv = ['x']\nrun(lambda argv: print(os.environ['AHA_TEST'], os.environ['HF_HOME']))"
    assert command("-c", code, cwd=tmp_path).stdout == "from the file there\n"
    assert command("-c", code, cwd=tmp_path, HF_HOME="set").stdout == "from the file set\n"  # what is set already wins
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    failed = command("-c", code, cwd=tmp_path)
    assert failed.returncode == 2 and "error: settings file .env cannot be read" in failed.stderr and "Traceback" not in failed.stderr


def test_every_module_that_is_a_command_starts_through_them():
    doors = {}
    for path in sorted((REPO / "aha").rglob("*.py")):
        last = ast.parse(path.read_text()).body[-1:]
        if last and isinstance(last[0], ast.If) and "__main__" in ast.unparse(last[0].test):
            doors[path.relative_to(REPO).as_posix()] = ast.unparse(last[0].body[-1])
    assert len(doors) > 15
    starters = ("run_command(", "run_rank(", "main()")  # main() of aha/cli.py is the one of the installed command
    assert {path: call for path, call in doors.items() if not call.startswith(starters)} == {
        "aha/data/catalog.py": "print(markdown(), folders(), sep='\\n')"
    }


def test_without_a_file_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aha.core.environment.ROOT", tmp_path)
    before = dict(os.environ)
    load_env()
    assert dict(os.environ) == before
