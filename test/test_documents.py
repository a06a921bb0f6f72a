"""Every command line of the documents is parsed by the parser that would run it: a flag that was renamed cannot stay in a guide.

Read are README.md, CONTRIBUTING.md, instructions/, the READMEs of folders, the headers and help texts of scripts/ and the docstrings that the
commands print as help. Nothing is executed: a command's own code runs until it has built its parser and read its arguments, and stops there.
Words in capitals (FILE, N) and `$w` stand for any value; a command that is only named in a sentence, or that has `...`, may lack arguments.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import REPO

from aha import cli
from aha.errors import UserError

INTEGRATION = REPO / "integrations" / "lmms_eval"
DOCUMENTS = sorted(
    path
    for path in [*REPO.glob("*.md"), *(REPO / "instructions").glob("*.md"), *REPO.glob("*/README.md"), INTEGRATION / "README.md"]
    if path.name != "CHANGELOG.md"  # it also names what is gone
)
SCRIPTS = sorted(path for path in (REPO / "scripts").rglob("*") if path.suffix in (".sh", ".sbatch"))
DOORS = [
    path
    for folder in (REPO / "aha", INTEGRATION / "aha_lmms_eval", REPO / "benchmarks")
    for path in sorted(folder.rglob("*.py"))
    if path.name != "__init__.py" or path.parent.name == "cli"
]
STARTS = ("aha", "python", "bash", "torchrun", "accelerate", "sbatch")
WILD = re.compile(r"[A-Z][A-Z0-9_]*|.*\$\w+.*")  # stands for a value
STANDS_FOR = {"run.sh": "tvsum", "train.sh": "train_on_tvsum"}  # $NAME in the help that several scripts share


@dataclass(frozen=True)
class Command:
    where: str
    text: str
    whole: bool  # in a block, to be copied: nothing may be missing


class Read(Exception):
    """The parser has read its arguments; `rest` is what it did not know."""

    def __init__(self, rest: list[str]):
        super().__init__(rest)
        self.rest = rest


class Refused(Exception):
    """What argparse would have printed."""


# ---- finding the commands ----


def single(text: str) -> list[str]:
    """The commands of shell lines: continued lines joined, comments dropped, pipes, lists and loops taken apart."""
    text = re.sub(r"\\\n\s*", " ", text)
    parts = []
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line)
        parts += [re.sub(r"^\s*(do|\$)\s+", "", part).strip() for part in re.split(r"\s\|\s|&&|;(?:\s|$)", line)]
    return [part for part in parts if words_of(part) and words_of(part)[0] in STARTS]


def words_of(text: str) -> list[str]:
    """The words of a command without VARIABLE=value before it."""
    try:
        words = shlex.split(text)
    except ValueError:  # a sentence with an apostrophe
        return []
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    return words


def in_markdown(text: str, where: str) -> list[Command]:
    blocks = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    found = [Command(where, part, True) for kind, body in blocks.findall(text) if kind != "python" for part in single(body)]
    for code in re.findall(r"`([^`]+)`", blocks.sub("", text)):
        found += [Command(where, part, False) for part in single(re.sub(r"\s+", " ", code))]
    return found


def in_script(text: str, path: Path) -> list[Command]:
    """Commands of the comments and of the help text: alone on an indented line, or after a colon at the end of a sentence."""
    text = text.replace("$NAME", STANDS_FOR.get(path.name, "$NAME"))
    found = []
    for line in text.splitlines():
        match = re.match(r"(?:#? {2,}|#.*: +)((?:[A-Z_]+=\S+ )*(?:" + "|".join(STARTS) + ") .*)", line)
        if match:
            found += [Command(path.name, part, True) for part in single(re.sub(r" {2,}[a-z].*", "", match[1]))]
    module = "aha.score" if "inference" in path.parts else "aha.train"
    for flags in re.findall(r"^(?:SCORE|DEFAULTS)=\(([^)]*)\)", text, re.MULTILINE):
        found.append(Command(path.name, f"python -m {module} " + " ".join(flags.split()) + " ...", False))
    return found


def in_docstring(text: str, where: str) -> list[Command]:
    lines = re.findall(r"^ {4}(?!\s)((?:.*\\\n)*.*)", text, re.MULTILINE)
    return [Command(where, re.sub(r" {3,}.*| \(=.*", "", part), True) for line in lines for part in single(line)]


def commands() -> list[Command]:
    found = [c for path in DOCUMENTS for c in in_markdown(path.read_text(encoding="utf-8"), str(path.relative_to(REPO)))]
    found += [c for path in SCRIPTS for c in in_script(path.read_text(encoding="utf-8"), path)]
    for path in DOORS:
        found += in_docstring(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "", str(path.relative_to(REPO)))
    return list(dict.fromkeys(found))


# ---- parsing them ----


@pytest.fixture
def parsers_only(monkeypatch):
    """argparse stops the command once it has read its arguments; wild words pass as any value."""
    real = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_known_args", "_get_value", "_check_value")}

    def parse_known_args(parser, args=None, namespace=None):
        parser.allow_abbrev = False
        if not parse_known_args.whole:
            for part in [*parser._actions, *parser._mutually_exclusive_groups]:
                part.required = False
        _, rest = real["parse_known_args"](parser, args, namespace)
        raise Read(rest)

    def get_value(parser, action, text):
        try:
            return real["_get_value"](parser, action, text)
        except (argparse.ArgumentError, argparse.ArgumentTypeError):
            if WILD.fullmatch(text):
                return text
            raise

    def check_value(parser, action, value):
        if not (isinstance(value, str) and WILD.fullmatch(value)):
            real["_check_value"](parser, action, value)

    def error(parser, message):
        raise Refused(message)

    for name, ours in (("parse_known_args", parse_known_args), ("_get_value", get_value), ("_check_value", check_value), ("error", error)):
        monkeypatch.setattr(argparse.ArgumentParser, name, ours)
    monkeypatch.setattr("builtins.print", lambda *_, **__: None)
    monkeypatch.syspath_prepend(str(INTEGRATION))
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return lambda whole: setattr(parse_known_args, "whole", whole)


def alternatives(words: list[str]) -> list[list[str]]:
    """`aha data get|check` is two commands."""
    lists = [[]]
    for word in words:
        lists = [[*before, one] for before in lists for one in (word.split("|") if re.fullmatch(r"[\w|]+", word) else [word])]
    return lists


def problem(command: Command, parsers_only) -> str | None:
    """Why a command line cannot be run as it is written."""
    open_end = "..." in command.text
    text = re.sub(r"(--\w+) \.\.\.(?= )", r"\1 VALUE", command.text).replace("...", " ")
    text = re.sub(r"\[(-[^\]]*)\]", r"\1", text)  # [--limit N] may be left out
    text = re.sub(r" \[[^\]]*\]", "", text)  # [flags of aha.score]
    words = words_of(text)
    parsers_only(command.whole and not open_end)
    for one in alternatives(words):
        try:
            wrong = check(one)
        except (Refused, UserError, ImportError) as refused:
            wrong = str(refused)
        except SystemExit:  # --help, --version
            wrong = None
        if wrong:
            return f"{command.where}: {command.text}: {wrong}"
    return None


def check(words: list[str]) -> str | None:
    first, rest = words[0], words[1:]
    if first in ("torchrun", "accelerate"):
        return check(["python", *rest[rest.index("-m") :]]) if "-m" in rest else None
    if first == "sbatch":
        script = next(i for i, word in enumerate(rest) if word.endswith(".sbatch"))
        return check(["bash", "scripts/train_on_tvsum.sh", *rest[script + 1 :]]) if (REPO / rest[script]).is_file() else "no such script"
    if first == "aha":
        if not rest or WILD.fullmatch(" ".join(rest[:1])) or (rest[0] in cli.GROUPS and (len(rest) == 1 or WILD.fullmatch(rest[1]))):
            return None
        if rest[0].startswith("-"):
            cli.run(rest)
            return None
        function, arguments = cli.find(rest)
        return parse(function.__module__, function, arguments)
    if first == "bash":
        return check_script(rest)
    if rest[:1] == ["-m"]:
        module, arguments = rest[1], rest[2:]
        if not module.startswith(("aha", "aha_lmms_eval")) or re.search(r"[A-Z*]", module):
            return None  # somebody else's program, or any of ours
        if (REPO / module.replace(".", "/") / "__main__.py").is_file() and module != "aha.cli":
            module += ".__main__"
        function = vars(importlib.import_module(module)).get("main")
        return parse(module, function, arguments) if function or arguments else None
    if rest and rest[0].endswith(".py"):
        if not (REPO / rest[0]).is_file():
            return "no such file"
        return run_file(REPO / rest[0], rest[1:]) if "ArgumentParser" in (REPO / rest[0]).read_text() else None
    return None


def check_script(words: list[str]) -> str | None:
    if not words or words[0] == "-c":
        return None
    path, arguments = REPO / words[0], words[1:]
    if not path.is_file():
        return "no such script"
    if path.name == "test.sh" or arguments[:1] in (["--help"], ["-h"]):
        return None
    if path.name == "reproduce.sh":
        module = "aha.reproduce.__main__"
    elif path.name == "kfold_tvsum.sh":
        arguments = without(arguments, "--splits", "--h5", "--output")
        if arguments[:1] == ["--demo"]:
            module, arguments = "aha.demo.kfold", ["OUTPUT", "--train", "0", *arguments[1:]]
        else:
            module = "aha.train"
    elif arguments[:1] == ["--demo"]:
        module, arguments = "aha.demo.run", arguments[1:]
    elif path.name == "make_demo_base.sh":
        module = "aha.demo.pretrain"
    elif path.parent.name == "inference":
        module = "aha.score"
        arguments = ["--output", "FILE", "--llm_pretrained", "BASE", "--dataset", path.stem, *arguments]
    else:
        module = "aha.train"
    return parse(module, importlib.import_module(module).main, arguments)


def without(arguments: list[str], *flags: str) -> list[str]:
    """Arguments without the flags that a script takes itself, and their values."""
    return [word for before, word in zip(["", *arguments], arguments) if word not in flags and before not in flags]


def parse(module: str, function, arguments: list[str]) -> str | None:
    if "--debug" in arguments:  # taken by run_command
        arguments = [word for word in arguments if word != "--debug"]
    if module in ("aha.train", "aha.preflight"):
        if {"--help", "--help_all"} & set(arguments):
            return None
        module, function = "aha.train", parse_train
    try:
        function(arguments)
    except Read as read:
        if module in ("aha.demo.run", "aha.demo.kfold") and read.rest:  # which they hand to the trainer
            return parse("aha.train", None, read.rest)
        return f"unknown: {' '.join(read.rest)}" if read.rest else None
    return "it has no parser"


def parse_train(arguments: list[str]) -> None:
    from transformers import HfArgumentParser

    from aha.training.arguments import DataArguments, ModelArguments, RunArguments

    parser = HfArgumentParser((ModelArguments, DataArguments, RunArguments))
    parser.add_argument("--num_gpus", type=int)  # of the check before a run
    parser.add_argument("--model")  # which aha.train puts in other words
    parser.parse_known_args(arguments)


def run_file(path: Path, arguments: list[str]) -> str | None:
    before = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except Read as read:
        return f"unknown: {' '.join(read.rest)}" if read.rest else None
    finally:
        sys.argv = before
    return "it has no parser"


# ---- the promises ----


def test_every_command_of_the_documents_can_be_run(parsers_only):
    found = commands()
    assert len(found) > 120 and len({command.where for command in found}) > 40
    assert [wrong for command in found if (wrong := problem(command, parsers_only))] == []


@pytest.mark.parametrize(
    "line, said",
    [
        # the main row of the paper, as it stood in reproduce.md: the flag has another name
        ("python -m aha.eval.tvsum --predictions p.json --alpha 0.7 --epsilon -2.9 --threshold 0.3   # zero-shot row", "--threshold"),
        ("python -m aha.score --llm_pretrained BASE --video FILE --query TEXT", "--output"),
        ("aha eval tvsum --predictions", "expected"),
        ("bash scripts/train_on_tvsum.sh --max_stepz 20", "--max_stepz"),
        ("bash scripts/train_on_tvsum.sh --demo --seed 1 --max_stepz 20", "--max_stepz"),
        ("bash scripts/inference/tvsum.sh --cache round", "round"),
        ("torchrun --nproc_per_node 8 -m aha.score --dataset tvsum --output o.json --llm_pretrained B --nonsense", "--nonsense"),
        ("for w in 1 2; do python -m aha.eval.grid_search --prediction $w; done", "--prediction"),
        ("python benchmarks/score_online.py --frame 3", "--frame"),
        ("bash scripts/kfold_tvsum.sh --splits s.json --h6 x.h5", "--h6"),
        ("bash scripts/nowhere.sh", "no such script"),
    ],
)
def test_a_wrong_line_is_found(parsers_only, line, said):
    (command,) = in_markdown(f"```\n{line}\n```\n", "a.md")
    assert said in problem(command, parsers_only)
