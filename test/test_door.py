"""`aha` is one door: every command has a fast --help, and reaches the same code as its `python -m` door."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import runpy
import subprocess
import sys

import pytest
from paths import REPO, shared_fixture

import aha
import aha.errors
from aha import cli
from aha.core import environment
from aha.errors import UserError

HEAVY = ("torch", "transformers", "gradio", "deepspeed", "ray", "wandb")
MODULES = [
    ".".join(path.relative_to(REPO).with_suffix("").parts)
    for path in sorted((REPO / "aha").rglob("*.py"))
    if re.search(r"^    run_(command|rank)\(main\)$", path.read_text(encoding="utf-8"), re.MULTILINE) and "cli" not in path.parts
]
COMMANDS = [[name] for name in cli.COMMANDS] + [[group, name] for group, (_, names) in cli.GROUPS.items() for name in names]
WORDS = [" ".join(words) for words in COMMANDS]

EVERY_HELP = """
import contextlib, io, json, runpy, sys
import aha.cli

def shown(run):
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            run()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    return {"code": code, "text": text.getvalue(), "heavy": [name for name in HEAVY if name in sys.modules]}

def door(module):
    sys.argv = [module, "--help"]
    runpy.run_module(module, run_name="__main__")

found = {}
for words in COMMANDS:
    found["aha " + " ".join(words)] = shown(lambda: aha.cli.run([*words, "--help"]))
for module in MODULES:
    found["python -m " + module] = shown(lambda: door(module))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def every_help():
    """Of every command and every module with a door: exit code and text of --help, and which heavy packages are loaded after it."""
    code = f"HEAVY, COMMANDS, MODULES = {HEAVY!r}, {[[], *[[group] for group in cli.GROUPS], *COMMANDS]!r}, {MODULES!r}\n{EVERY_HELP}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_needs_no_heavy_import(every_help):
    """A second of CPU at most, whatever the machine: torch alone takes two, transformers three more."""
    assert len(every_help) >= len(COMMANDS) + len(MODULES) > 25
    assert {name: found["heavy"] for name, found in every_help.items() if found["heavy"]} == {}
    assert {name: found["code"] for name, found in every_help.items() if found["code"]} == {}


def test_help_says_how_the_command_is_called(every_help):
    for name, found in every_help.items():
        assert found["text"].startswith("usage: ") and len(found["text"]) > 80, name
    overview = every_help["aha "]["text"]
    assert all(re.search(rf"\b{word}\b", overview) for words in COMMANDS for word in words)
    for words in COMMANDS:
        module = importlib.import_module(cli.find(words)[0].__module__).__name__
        if f"python -m {module}" in every_help:
            assert every_help["aha " + " ".join(words)]["text"] == every_help[f"python -m {module}"]["text"]


def test_the_version():
    done = subprocess.run([sys.executable, "-m", "aha", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"aha {aha.__version__}\n"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", MODULES)
def test_both_doors_lead_to_the_same_code(module, monkeypatch):
    """`python -m MODULE` hands a function to run_command (aha.train: run_rank); `aha ...` finds the same one."""
    found = []
    monkeypatch.setattr(aha.errors, "run_command", found.append)
    monkeypatch.setattr(environment, "run_rank", found.append)
    runpy.run_module(module, run_name="__main__")
    codes = {cli.find(words)[0].__code__: " ".join(words) for words in COMMANDS}
    (behind,) = found
    words = next(
        (words for code, words in codes.items() if (code.co_filename, code.co_name) == (behind.__code__.co_filename, behind.__name__)), None
    )
    # what has no word: the demo's makers, the check before a run, and the index of videos that every command makes itself
    inside = {
        "aha.demo.dataset",
        "aha.demo.kfold",
        "aha.demo.pretrain",
        "aha.demo.proactive",
        "aha.demo.run",
        "aha.demo.ship",
        "aha.preflight",
        "aha.video.library",
    }
    assert (words is None) == (module in inside), words


def test_every_command_is_found_and_gets_its_own_words():
    for words in COMMANDS:
        function, rest = cli.find([*words, "--flag", "eval"])
        assert callable(function) and rest == ["--flag", "eval"]


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["skore"], "'skore' is no command of aha; choose from highlights, watch,"),
        (["eval"], "aha eval needs a name: tvsum,"),
        (["eval", "tvsun"], "'tvsun' is no name of aha eval; choose from tvsum,"),
        (["data", "chek"], "'chek' is no name of aha data"),
        ([], "give a command"),
    ],
)
def test_a_wrong_name_is_one_sentence(argv, sentence):
    with pytest.raises(UserError) as told:
        cli.run(argv)
    assert str(told.value).startswith(sentence)
    done = subprocess.run([sys.executable, "-m", "aha", *argv], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}") and "Traceback" not in done.stderr
    debug = subprocess.run([sys.executable, "-m", "aha", *argv, "--debug"], capture_output=True, text=True)
    assert debug.returncode == 2 and "Traceback" in debug.stderr


def test_train_ends_as_a_rank_does(monkeypatch):
    """Under torchrun (--no-python aha train ...) a failing rank must not wait for the others."""
    used = []
    monkeypatch.setattr(environment, "run_rank", used.append)
    monkeypatch.setattr(sys, "argv", ["aha", "train", "--help"])
    cli.main()
    assert used == [cli.run]


def test_the_help_of_train_is_that_of_its_parser(every_help):
    from aha.training.arguments import DataArguments, ModelArguments, RunArguments

    shown = re.sub(r"\s+", " ", every_help["python -m aha.train"]["text"])
    ours = [*dataclasses.fields(ModelArguments), *dataclasses.fields(DataArguments)]
    ours += [field for field in dataclasses.fields(RunArguments) if field.name in RunArguments.__annotations__]
    assert len(ours) > 35
    for field in ours:
        about = re.sub(r"\s+", " ", field.metadata["help"])
        entry = f"{about} (default {field.default})" if field.default is not None else about
        assert f"--{field.name} " in shown and entry in shown, field.name


def test_eval_without_anything_downloaded(tmp_path, monkeypatch):
    """The numbers of a prediction file, from a folder with nothing in it: the annotations come with the package."""
    monkeypatch.chdir(tmp_path)
    file = shared_fixture("eval/tvsum_pred_noisy.json")
    cli.run(["eval", "tvsum", "--predictions", str(file), "--protocols", "corr_clip2s", "--random_runs", "1", "--output", "metrics.json"])
    golden = json.loads(shared_fixture("eval/tvsum_golden.json").read_text())["predictors"]["noisy"]["corr_clip2s"]["kendall"]["mean"]
    assert json.loads((tmp_path / "metrics.json").read_text())["protocols"]["corr_clip2s"]["kendall"]["mean"] == pytest.approx(
        golden, abs=1e-9
    )
