"""What `pip install .` promises: both packages with all their files, every import declared, every pin used, an extra named where it is missing."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from paths import REPO

from aha.core import environment, extras
from aha.core.extras import need
from aha.errors import UserError

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"aha", "llava_next"}
# Used without an import of ours: transformers' Trainer writes tensorboard logs and needs accelerate, torch finds flash-attn,
# pycocoevalcap brings two Java programs, OpenTimelineIO finds its adapters, the tests run in parallel, are linted, type-checked and build a wheel.
PLUGINS = {
    "pycocoevalcap",
    "tensorboard",
    "accelerate",
    "flash-attn",
    "pytest-xdist",
    "ruff",
    "import-linter",
    "otio-cmx3600-adapter",
    "otio-fcpx-xml-adapter",
    "mypy",
    "setuptools",
}


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def imports(folder: Path) -> dict[str, set[str]]:
    """Top-level module -> where it is imported, of every .py file below `folder`, without the standard library."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
                names = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    found.setdefault(top, set()).add(str(path.relative_to(REPO)))
    return found


@cache
def modules_of_packages() -> dict[str, list[str]]:
    return packages_distributions()  # reads every installed file list: a second


def distribution(module: str) -> str:
    """The package that brings a module: as installed here; of those that are not (torch's CUDA builds bring triton), by name."""
    missing = {
        "triton": "torch",
        "ray": "ray",
        "pycocoevalcap": "pycocoevalcap",
        "selenium": "selenium",
        "decord": "decord",
        "torchcodec": "torchcodec",
        "paho": "paho-mqtt",
    }
    return canonical((modules_of_packages().get(module) or [missing.get(module, module)])[0])


def declared(*names: str) -> set[str]:
    lines = PROJECT["dependencies"] if not names else [line for name in names for line in EXTRAS[name]]
    return {canonical(line) for line in lines}


def test_what_the_packages_import_is_declared():
    optional = declared(*EXTRAS) - declared("dev", "web-test")
    for folder in ("aha", "LLaVA_NeXT/llava_next"):
        for module, where in imports(REPO / folder).items():
            assert distribution(module) in declared() | optional, f"{module}, imported in {sorted(where)}, is in no list of pyproject.toml"
    base = {canonical(line) for line in tomllib.loads((REPO / "LLaVA_NeXT/pyproject.toml").read_text())["project"]["dependencies"]}
    assert {distribution(module) for module in imports(REPO / "LLaVA_NeXT/llava_next")} - {"numpy"} <= base


def test_an_extra_is_imported_inside_functions_only():
    """A top-level import of an optional package would break `pip install .`; aha.web and aha.serve are imported by `aha demo` and `aha serve`
    alone, after the check (aha.serve.command, which gives the flags, is held to the rule)."""
    optional = declared(*EXTRAS) - declared()
    for path in sorted((REPO / "aha").rglob("*.py")):
        if path.is_relative_to(REPO / "aha/web") or (
            path.is_relative_to(REPO / "aha/serve") and path.name not in ("command.py", "limits.py")
        ):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            )
            assert not {distribution(name.split(".")[0]) for name in names} & optional, path


def test_what_is_declared_is_imported():
    used = {distribution(module) for part in ("aha", "LLaVA_NeXT", "test", "benchmarks", "scripts") for module in imports(REPO / part)}
    assert declared() | declared(*EXTRAS) <= used | PLUGINS


def test_pins_cover_the_lists_and_nothing_else():
    pins = {canonical(line): line for line in (REPO / "requirements.txt").read_text().splitlines() if not line.startswith("#")}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins.values())
    assert declared() | declared("train", "web", "serve", "dev") <= set(pins) <= declared() | declared(*EXTRAS)


def test_an_environment_that_lacks_a_package_is_noticed(tmp_path):
    """scripts/check_environment.py, run by an environment with one package hidden and one too old."""
    code = f"""
import importlib.metadata as m, runpy, sys
real = m.version
def version(name):
    if name == "ruptures": raise m.PackageNotFoundError(name)
    return "0.0.1" if name == "deepspeed" else real(name)
m.version = version
sys.prefix = "/an/environment"
runpy.run_path({str(REPO / "scripts/check_environment.py")!r}, run_name="__main__")
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["ruptures is missing", "deepspeed 0.0.1 is older than 0.19"]


def test_the_wheel_holds_both_packages_and_all_their_files(tmp_path):
    """Built from a copy: a build in place would leave folders, and old ones would end in the wheel."""
    source = tmp_path / "source"
    for name in ("aha", "LLaVA_NeXT"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "-q",
        "-w",
        str(tmp_path),
        ".",
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    files = [(source, path) for path in (source / "aha").rglob("*")] + [
        (source / "LLaVA_NeXT", path) for path in (source / "LLaVA_NeXT/llava_next").rglob("*")
    ]
    assert inside == {str(path.relative_to(root)) for root, path in files if path.is_file() and "build" not in path.relative_to(root).parts}
    code = "import aha, llava_next, aha.api, json; print(json.dumps([aha.__file__, llava_next.__file__, aha.__version__]))"
    here = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=here, cwd=tmp_path, check=True).stdout
    package, base, version = json.loads(shown)
    assert Path(package).is_relative_to(tmp_path / "installed") and Path(base).is_relative_to(tmp_path / "installed")
    assert wheel.name.startswith(f"aha_video-{version}-")


def test_a_missing_extra_is_one_sentence(monkeypatch):
    need("json", "web", "this")  # there: nothing happens
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as told:
        need("gradio", "web", "aha demo")
    assert str(told.value) == "aha demo needs the package gradio, which is not installed: pip install 'aha-video[web]'."


def test_every_extra_that_the_code_names_exists():
    text = "".join(path.read_text(encoding="utf-8") for path in (REPO / "aha").rglob("*.py"))
    named = set(re.findall(r"need\([^)]*?, \"([\w-]+)\", ", text)) | set(re.findall(r"install_line\([\"']([\w-]+)[\"']\)", text))
    assert named and named <= set(EXTRAS)


def test_what_only_a_checkout_has_is_said(monkeypatch, tmp_path):
    assert environment.checkout_file("configs/deepspeed/zero2.json").is_file()
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    with pytest.raises(UserError, match="part of the repository and not of the installed package"):
        environment.checkout_file("configs/deepspeed/zero2.json")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert environment.git_commit() is None  # somebody else's repository around the installed package is not this project's version
