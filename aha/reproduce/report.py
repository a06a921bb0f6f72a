"""What a run says in the end: results.json, and from it REPORT.md and report.html (one file that needs nothing else).

Numbers and intervals are read from the metrics files; whether a published row may stand beside them is what the evaluation said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aha.core.environment import versions
from aha.core.files import read_json, write_json, write_text
from aha.eval import load_task, published
from aha.eval.published import Counted
from aha.reproduce.check import Card
from aha.reproduce.steps import Runner, Step, digest, settings
from aha.reproduce.tables import LEADERBOARD, SIZES, Evaluation, Metric, Table
from aha.results import table as texts
from aha.results.beside import NO_RESULT, Row, as_document, by_table, leaderboard_row, markdown, rows_of
from aha.results.document import read_document
from aha.results.tree import leaf

REAL_BYTES = 5e8  # of weights: the smallest real base has 1.8 GB, tests and the demo some MB
SEEDS = "bootstrap over videos 0; corruption, unrelated queries and folds 0"


# ---- numbers ----


def table_rows(table: Table, runner: Runner) -> list[Row]:
    """Every number of the table that was made."""
    rows = []
    for evaluation in table.evaluations:
        step = runner.steps.get(f"eval-{evaluation.name}")
        if step is not None and not step.failure:
            rows += grid_rows(table, evaluation, step) if evaluation.grid else evaluation_rows(table, evaluation, step)
    return rows


def grid_rows(table: Table, evaluation: Evaluation, step: Step) -> list[Row]:
    """The grid search's held-out mean; it has no interval."""
    found = read_json(step.output, "grid search")
    means, videos = found["cross_validation"]["mean"], found["videos"]
    wanted = evaluation.metrics or table.metrics
    of = SIZES[evaluation.of.dataset][0]
    return [Row(table.id, table.title, evaluation.row, p, metric, means.get(metric), None, videos, of) for p, metric, _ in wanted]


def evaluation_rows(table: Table, evaluation: Evaluation, step: Step) -> list[Row]:
    document = read_document(step.output)
    layout = load_task(evaluation.of.dataset).layout()
    videos = document["videos"]
    scored, of, seen = videos["scored"], document["settings"]["selected_videos"], len(videos["trained_on"])
    rows = []
    for metric in evaluation.metrics or table.metrics:
        entry = leaf(document["protocols"], *metric)
        if entry is None and metric[1] in document.get("missing_metrics", {}):  # needs Java: a note of the check says so
            continue
        bounds = leaf(document["confidence_intervals"], *metric)
        percent = layout.is_percent(metric[0], metric[1])
        ours = (table.id, table.title, evaluation.row, metric[0], " ".join(filter(None, metric[1:])))
        values = (entry and entry["mean"], None if bounds is None or None in bounds else tuple(bounds), scored, of)
        beside = published_beside(table, evaluation, metric, document)
        for number, by, comparable in beside or [(None, "", "")]:
            rows.append(Row(*ours, *values, number, by, comparable, percent, seen))
    return rows


def published_beside(
    table: Table, evaluation: Evaluation, metric: Metric, document: Mapping[str, Any]
) -> list[tuple[float | None, str, str]]:
    """(published number, whose, whether comparable) for one of our numbers."""
    protocol, name, subset = metric
    if table.published == evaluation.of.dataset:  # the evaluation has judged them (--published)
        judged = [(row, row["method"], row["year"], row.get("because", "")) for row in document.get("published", [])]
    else:
        splits = {"all50": Counted(document["videos"]["scored"], document["settings"]["selected_videos"])}
        rows = published.read_rows(table.published)
        judged = [
            ({"protocol": row.protocol, "split": row.split, "numbers": row.numbers}, row.method, row.year,
             published.why_not(row, document["protocols"], splits))
            for row in rows
        ]  # fmt: skip
    found = []
    for row, method, year, because in judged:
        if method in evaluation.beside and row["protocol"] == protocol and name in row["numbers"] and subset in ("", row["split"]):
            word = f"no: {because}" if because else f"with care: {evaluation.care}" if evaluation.care else "yes"
            found.append((row["numbers"][name], f"{method} ({year})", word))
    return found


# ---- the document ----


def results(
    tables: Sequence[Table], runner: Runner, cards: Sequence[Card], notes: Sequence[str], weights: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of results.json. weights: {"sources": [...], "bytes": n}."""
    steps = list(runner.steps.values())
    done = [step for step in steps if not step.failure]
    rows = [row for table in tables for row in table_rows(table, runner)]
    because = why_no_result(runner, weights)
    return {
        "run": {
            "id": digest(sorted(step.stamp for step in done if step.name != "weights"), as_document(rows)),
            "settings": settings(runner.run, tables),
            "no_result": because, "unfinished": [f"{step.name}: {step.failure}" for step in runner.failures],
            "finished": datetime.now(UTC).isoformat(timespec="seconds"), "weights": dict(weights), "seeds": SEEDS,
            "cards": [f"{card.name}, driver {card.driver}" for card in cards], "gpus": runner.gpus, "versions": versions(),
            "commits": sorted({step.facts.get("commit") or "unknown" for step in done if step.facts}),
            "hours": round(sum(step.facts.get("seconds", 0.0) for step in done if step.name != "weights") / 3600, 4),
            "notes": [*notes, *(["the model has no uncertainty head: epsilon is 0 in all rows"] if runner.uncertainty is False else [])],
        },
        "rows": as_document(rows),
        "leaderboard": leaderboard(runner),
        "steps": [
            {"name": step.name, "command": step.command, **{key: step.facts.get(key) for key in ("seconds", "videos", "frames", "commit")}}
            for step in done
        ],
    }  # fmt: skip


def why_no_result(runner: Runner, weights: Mapping[str, Any]) -> list[str]:
    """Why nothing of this run may be quoted; empty for a result."""
    found = []
    if runner.run.limit is not None:
        found.append(f"only the first {runner.run.limit} videos of each benchmark were scored (--limit)")
    if weights["bytes"] < REAL_BYTES:
        found.append("the weights are not those of a real model (too small): a demo or a test")
    if runner.failures:
        found.append(f"{len(runner.failures)} of its steps failed")
    return found


def leaderboard(runner: Runner) -> dict[str, float | None]:
    """Column -> our number, of the tables of this run."""
    made: dict[str, float | None] = {column: None for column, _, _ in LEADERBOARD}
    for column, name, metric in LEADERBOARD:
        step = runner.steps.get(f"eval-{name}")
        if step is not None and not step.failure:
            entry = leaf(read_document(step.output)["protocols"], *metric)
            made[column] = None if entry is None else entry["mean"]
    return made


# ---- the two forms ----


def write(out: Path, document: Mapping[str, Any], tables: Sequence[Table]) -> Path:
    """results.json, REPORT.md, report.html; the path of REPORT.md."""
    write_json(out / "results.json", document)
    write_text(out / "REPORT.md", report(document, tables))
    write_text(out / "report.html", page(document, tables))
    return out / "REPORT.md"


def facts(document: Mapping[str, Any]) -> dict[str, str]:
    """What the report says of the run, name -> text."""
    run, chosen = document["run"], document["run"]["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in run["versions"]["packages"].items() if version)
    frames = sum(step["frames"] or 0 for step in document["steps"])
    order = "as the released code does (--released)" if chosen["released"] else "in the order of training"
    return {
        "model": f"{chosen['model']} ({', '.join(run['weights']['sources'])}), scored {order}",
        "finished": run["finished"],
        "hours": f"{run['hours']:.2f} h for {frames:,} frames, loading and evaluation included, on {run['gpus']} process(es)",
        "cards": "; ".join(run["cards"]) or f"none ({chosen['device'] or 'no GPU was looked for'})",
        "seeds": run["seeds"],
        "code": f"commit {', '.join(run['commits']) or run['versions']['git_commit']}",
        "software": f"Python {run['versions']['python']}, {packages}",
        "intervals": "95%, bootstrap over videos; the paper prints none",
    }


def warnings(document: Mapping[str, Any]) -> list[str]:
    run = document["run"]
    found = [f"{NO_RESULT}: " + "; ".join(run["no_result"]) + ". Quote none of these numbers."] if run["no_result"] else []
    found += [f"not finished: {text}" for text in run["unfinished"]]
    if len(run["commits"]) > 1:
        found.append(f"its steps were made by {len(run['commits'])} commits; remove the folder to make all by one")
    return found


def report(document: Mapping[str, Any], tables: Sequence[Table]) -> str:
    chosen = document["run"]["settings"]
    lines = [f"# {chosen['model']} beside the published tables", ""]
    lines += [f"> **{text}**\n>" for text in warnings(document)]
    said = [*facts(document).items(), *(("note", text) for text in document["run"]["notes"])]
    lines += ["", *(f"- {name}: {text}" for name, text in said)]
    lines += ["", "`no` and `with care` say why a published number is none to compare with; see instructions/reproduce.md."]
    found = by_table(rows_of(document, "results.json"))
    for table in tables:
        also = f" (and {', '.join(table.also)})" if table.also else ""
        lines += ["", f"## Table {table.id}{also}: {table.title}", ""]
        rows = found.get((table.id, table.title), [])
        lines += [markdown(rows) if rows else "nothing was made of it"] + ([f"\n{table.note}"] if table.note else [])
    lines += ["", "## Leaderboard row", "", leaderboard_row(chosen["model"], document["leaderboard"])]
    lines += ["", "## Commands", "", "| step | minutes | frames | frames/s | command |", "| --- | --- | --- | --- | --- |"]
    for step in document["steps"]:
        frames, seconds = step["frames"], step["seconds"] or 0.0
        speed = f"{frames / seconds:.1f}" if frames and seconds else ""
        lines.append(f"| {step['name']} | {seconds / 60:.1f} | {frames or ''} | {speed} | `{step['command']}` |")
    return "\n".join(lines) + "\n"


def page(document: Mapping[str, Any], tables: Sequence[Table]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("aha.reproduce", "."), autoescape=True, undefined=StrictUndefined)
    found = by_table(rows_of(document, "results.json"))
    return environment.get_template("report.html").render(
        model=document["run"]["settings"]["model"], warnings=warnings(document), facts=facts(document), notes=document["run"]["notes"],
        tables=[(table, found.get((table.id, table.title), [])) for table in tables], steps=document["steps"],
        leaderboard={name: texts.shown(value) for name, value in document["leaderboard"].items()},
    )  # fmt: skip
