"""The tables of the Aha paper in one command, from nothing to a report: `bash scripts/reproduce.sh` calls this.

    python -m aha.reproduce                             all tables, with the published adapter
    python -m aha.reproduce --tables 1,9 --limit 2      a smoke run of two tables: no result, and the report says so
    python -m aha.reproduce --check                     what is missing on this machine
    python -m aha.reproduce --estimate 318 88           hours by table at these frames a second, offline and where the model speaks
    python -m aha.reproduce --commands                  the commands of every table

First everything that is missing is listed at once (exit code 2), before anything is downloaded. Then weights, scores and numbers; a killed
run goes on with the same command. OUTPUT holds REPORT.md, report.html, results.json, predictions/, numbers/, logs/.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aha.core.environment import lock_file
from aha.core.files import check_output
from aha.core.flags import finite
from aha.errors import UserError, run_command
from aha.reproduce import check, ledger, report
from aha.reproduce.steps import Runner, estimate
from aha.reproduce.tables import TABLES, Run, Table, chosen_tables, commands
from aha.scoring.model_choice import ModelChoice


def parser() -> argparse.ArgumentParser:
    default = Run()
    p = argparse.ArgumentParser("python -m aha.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(name for table in TABLES for name in (table.id, *table.also))
    p.add_argument("--tables", metavar="1,2,...", help=f"only these of the paper: {names} (default: all)")
    p.add_argument(
        "--model", default=default.model, metavar="NAME", help="a name of aha models, a folder or a hub id (default %(default)s)"
    )
    p.add_argument("--output", default=default.out, metavar="DIR", help="folder of the run (default %(default)s)")
    p.add_argument("--data", default=default.data, metavar="DIR", help="folder of the data sets (default %(default)s)")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N videos of each benchmark: a smoke run, no result")
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda; cpu for a smoke run without a GPU")
    p.add_argument("--released", action="store_true", help="score as the released code does, in all tables (table 1 has such a row anyway)")
    p.add_argument("--judge", default=default.judge, choices=("endpoint", "local"), help="table 8: who grades (default %(default)s)")
    p.add_argument("--judge_model", default=default.judge_model, metavar="NAME", help="table 8 (default %(default)s)")
    only = p.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="say what is missing, and stop")
    only.add_argument(
        "--estimate", nargs="+", type=finite, metavar="F", help="frames/s [where the model speaks]: print hours by table, and stop"
    )
    only.add_argument("--commands", action="store_true", help="print the commands of the tables, and stop")
    return p


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    tables = chosen_tables(args.tables)
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: at least 1 video is needed.")
    out, data = args.output.rstrip("/"), args.data.rstrip("/")
    check_output(out, overwrite=True)
    run = Run(args.model, out, data, args.limit, args.device, args.released, args.judge, args.judge_model)
    if args.commands:
        for table in tables:
            print(f"# table {table.id}: {table.title}\n{commands(table, run)}")
    elif args.estimate is not None:
        if len(args.estimate) > 2 or min(args.estimate) <= 0:
            raise UserError("--estimate takes one or two rates in frames a second, above 0: offline, and where the model speaks.")
        print(estimate(tables, run, args.estimate[0], args.estimate[-1]))
    else:
        notes = checked(tables, run)
        if not args.check:
            reproduce(tables, run, notes)


def checked(tables: Sequence[Table], run: Run) -> list[str]:
    """What is worth knowing before a run. Raises UserError that lists all that is missing."""
    missing, notes = check.look(tables, run)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if missing:
        many = "1 thing is" if len(missing) == 1 else f"{len(missing)} things are"
        raise UserError(f"{many} missing, and nothing was downloaded or run:\n  " + "\n  ".join(missing))
    print("nothing is missing: data, cards, weights and disk are there or can be had")
    return notes


def reproduce(tables: Sequence[Table], run: Run, notes: Sequence[str]) -> None:
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_file(out / ".lock", out, "--output")
    cards = [] if run.device == "cpu" else check.cards()
    runner = Runner(run, int(os.environ.get("NUM_GPUS") or len(cards) or 1))
    runner.fetch()
    weights = weights_of(run.model)
    for table in tables:
        print(f"---- table {table.id}: {table.title}", flush=True)
        runner.table(table)
    document = report.results(tables, runner, cards, notes, weights)
    path = report.write(out, document, tables)
    where, new = ledger.append(document)
    lock.close()
    for text in report.warnings(document):
        print(text, file=sys.stderr)
    print(f"report: {path} and {path.with_name('report.html')}\nledger: {where}" + ("" if new else " (this run is in it already)"))
    if runner.failures:
        raise UserError(f"{len(runner.failures)} of {len(runner.steps)} steps failed, as listed above; the same command runs these again.")


def weights_of(model: str) -> dict[str, Any]:
    """{"sources": [name at revision], "bytes": size of the weights on disk}."""
    choice = ModelChoice(model=model)
    folders = choice.fetch()
    sizes = [path.stat().st_size for folder in folders for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    named = [
        f"{source} at {folder.name[:12]}" if folder.parent.name == "snapshots" else str(source)
        for source, folder in zip(choice.sources, folders)
    ]
    return {"sources": named, "bytes": sum(sizes)}


if __name__ == "__main__":
    run_command(main)
