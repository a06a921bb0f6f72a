"""The ledger of results: one line a run in RESULTS.jsonl, and RESULTS.md, which is written anew from it.

What is a result goes to benchmarks/ of the checkout: every chosen table whole, on all videos that are there, with weights of a real model.
Everything else (--limit, the demo, tests, a step that failed) goes to the run's own folder and says so: the repository's ledger holds
results only. A run that is given again and finds all done is not entered twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aha.core.environment import ROOT
from aha.core.files import parse_json, read_text, write_text
from aha.errors import UserError
from aha.reproduce.tables import LEADERBOARD
from aha.results import table as texts
from aha.results.beside import NO_RESULT

HEAD = """# Results

One row for each full run of `bash scripts/reproduce.sh`, newest last; RESULTS.jsonl beside this file holds every number with its interval
and the published ones beside it, and this file is written from it. Only results are here: real weights, and all videos that were there.
Fractions but where a column says %, MAGQA in grades of 1 to 5; `-` where the run did not hold the table.
"""
OWN_HEAD = """# Runs of this folder

Written by `bash scripts/reproduce.sh`; RESULTS.jsonl beside this file holds every number. A row that is no result says so: quote
none of those.
"""
EMPTY = "\nNo run with real weights has been entered yet.\n"


def place(document: Mapping[str, Any]) -> Path:
    """The folder of the ledger that a run belongs to."""
    own = Path(document["run"]["settings"]["out"])
    shared = ROOT / "benchmarks"
    return own if document["run"]["no_result"] or not (shared / "RESULTS.jsonl").is_file() else shared


def entry(document: Mapping[str, Any]) -> dict[str, Any]:
    """One line: the run without its commands (its report has them), and its rows."""
    run = {key: value for key, value in document["run"].items() if key != "notes"}
    settings = {key: value for key, value in run["settings"].items() if key not in ("out", "data")}  # paths of one machine
    return {**run, "settings": settings, "leaderboard": document["leaderboard"], "rows": document["rows"]}


def read(path: Path) -> list[dict[str, Any]]:
    """The entries. Raises UserError for a damaged line."""
    if not path.is_file():
        return []
    lines = read_text(path, "ledger").splitlines()
    entries = [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if wrong := [number for number, one in enumerate(entries, 1) if not isinstance(one, dict) or not {"id", "leaderboard"} <= set(one)]:
        raise UserError(f"{path}: entry {wrong[0]} is none that scripts/reproduce.sh wrote; repair or remove the line.")
    return entries


def append(document: Mapping[str, Any]) -> tuple[Path, bool]:
    """(RESULTS.md of the ledger, whether the run is new in it). Both files are written whole."""
    folder = place(document)
    path = folder / "RESULTS.jsonl"
    entries = read(path)
    new = document["run"]["id"] not in [one["id"] for one in entries]
    if new:
        entries.append(entry(document))
        write_text(path, "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in entries))
    write_text(folder / "RESULTS.md", markdown(entries, HEAD if folder == ROOT / "benchmarks" else OWN_HEAD))
    return folder / "RESULTS.md", new


def markdown(entries: list[dict[str, Any]], head: str) -> str:
    columns = [column for column, _, _ in LEADERBOARD]
    if not entries:
        return head + EMPTY
    heads = ["finished", "model", *columns, "GPU", "hours", "commit", ""]
    lines = [heads, ["---"] * len(heads)]
    for one in entries:
        numbers = [texts.shown(one["leaderboard"].get(column)) for column in columns]
        how = " (released)" if one["settings"]["released"] else ""
        card = f"{one['gpus']} x {one['cards'][0].split(',')[0]}" if one["cards"] else "none"
        commit = ", ".join(commit[:12] for commit in one["commits"])
        said = f"**{NO_RESULT}**: {'; '.join(one['no_result'])}" if one["no_result"] else f"tables {', '.join(one['settings']['tables'])}"
        lines.append([one["finished"][:10], one["settings"]["model"] + how, *numbers, card, f"{one['hours']:.2f}", commit, said])
    return head + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
