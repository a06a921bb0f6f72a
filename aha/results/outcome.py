"""What the question benchmarks print and write: a table with confidence intervals, metrics.json and a report folder.

Q questions; a metric is an array [Q] with NaN where a question does not count (its mean is over the others).
"""

from __future__ import annotations

import argparse
import html
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aha.core.files import write_json, write_text
from aha.errors import UserError
from aha.metrics.bootstrap import confidence_intervals
from aha.results.table import block, interval, named_list, shown
from aha.results.tree import mean_of, number


@dataclass
class Protocol:
    """One way of counting: metric name -> [Q]. `note` is printed under its table: the source, and what looks ahead."""

    note: str
    metrics: dict[str, np.ndarray]
    baselines: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # row -> metric -> [Q]
    headline: tuple[str, ...] = ()  # the metrics that the tables show; () = all
    percent: bool = True
    missing: dict[str, str] = field(default_factory=dict)  # metric -> why it could not be computed ("needs Java")


@dataclass
class Outcome:
    """The result of one evaluation."""

    title: str
    questions: list[str]
    protocols: dict[str, Protocol]
    settings: dict[str, object]
    skipped: dict[str, str] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)
    trained_on: list[str] = field(default_factory=list)
    unanswered: int = 0  # questions of the list that have no prediction but count in some protocol
    extra: dict[str, object] = field(default_factory=dict)  # further keys of metrics.json, such as a sweep over thresholds


def mean(values_Q: np.ndarray) -> float:
    """Mean over the questions that count; NaN without any."""
    return mean_of(values_Q)


def metrics_document(outcome: Outcome) -> dict[str, object]:
    """The metrics file of the project's contract; `videos` counts questions, `per_video` is keyed by question id."""
    protocols, baselines, intervals = {}, {}, {}
    for name, protocol in outcome.protocols.items():
        protocols[name] = {
            metric: {
                "mean": number(mean(values)),
                "per_category": {},
                "per_video": {q: number(v) for q, v in zip(outcome.questions, values)},
            }
            for metric, values in protocol.metrics.items()
        }
        baselines[name] = {row: {metric: number(mean(v)) for metric, v in metrics.items()} for row, metrics in protocol.baselines.items()}
        bounds = confidence_intervals(np.array(list(protocol.metrics.values())).T)
        intervals[name] = {metric: None if np.isnan(low) else [low, high] for metric, (low, high) in zip(protocol.metrics, bounds.tolist())}
    return {
        "protocols": protocols,
        "baselines": baselines,
        "confidence_intervals": intervals,
        "videos": {
            "scored": len(outcome.questions) - outcome.unanswered,
            "skipped": outcome.skipped,
            "constant": outcome.constant,
            "trained_on": outcome.trained_on,
        },
        "missing_metrics": {metric: why for protocol in outcome.protocols.values() for metric, why in protocol.missing.items()},
        "settings": outcome.settings,
        **outcome.extra,
    }  # fmt: skip


def table_rows(outcome: Outcome, document: dict, name: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column names and (metric, cells) of one protocol's table."""
    protocol = outcome.protocols[name]
    rows = []
    for metric in protocol.headline or protocol.metrics:
        values = protocol.metrics[metric]
        cells = [shown(number(mean(values)), protocol.percent), interval(document["confidence_intervals"][name][metric], protocol.percent)]
        baselines = [shown(number(mean(b[metric])), protocol.percent) if metric in b else "-" for b in protocol.baselines.values()]
        rows.append((metric, [*cells, str(int((~np.isnan(values)).sum())), *baselines]))
    rows += [(metric, [why, "", "", *[""] * len(protocol.baselines)]) for metric, why in protocol.missing.items()]
    return ["mean", "95% interval", "n", *protocol.baselines], rows


def counts_line(outcome: Outcome) -> str:
    parts = [f"{len(outcome.questions) - outcome.unanswered} questions scored"]
    parts += [f"{len(outcome.skipped)} skipped"] if outcome.skipped else []
    parts += [f"{len(outcome.constant)} with constant scores"] if outcome.constant else []
    parts += [f"TRAINED ON: {len(outcome.trained_on)} of them were in the model's training data"] if outcome.trained_on else []
    return ", ".join(parts)


def print_outcome(outcome: Outcome, document: dict) -> None:
    print(f"{outcome.title}: {counts_line(outcome)}")
    reasons: dict[str, list[str]] = {}
    for question, why in outcome.skipped.items():
        reasons.setdefault(why, []).append(question)
    for why, questions in reasons.items():
        print(f"  skipped, {why}: {named_list(questions)}")
    for name, protocol in outcome.protocols.items():
        print("\n" + block(f"{name}: {protocol.note}", *table_rows(outcome, document, name)))


def write_report(outcome: Outcome, document: dict, folder: str | Path) -> Path:
    """metrics.json and a self-contained report.html (tables, intervals, each question's values) in `folder`; returns the page's path."""
    folder = Path(folder)
    write_json(folder / "metrics.json", document)
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;margin:1em 0}"
        "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child,.left{text-align:left}"
        ".note{color:#555}.bar{background:#4477aa;height:.7em;display:inline-block}details{margin:1em 0}"
    )
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(outcome.title)}</title><style>{style}</style>"]
    parts.append(f"<h1>{html.escape(outcome.title)}</h1><p>{html.escape(counts_line(outcome))}.</p>")
    for name, protocol in outcome.protocols.items():
        columns, rows = table_rows(outcome, document, name)
        parts.append(f"<h2>{html.escape(name)}</h2><p class=note>{html.escape(protocol.note)}</p><table><tr><th>metric")
        parts.append("".join(f"<th>{html.escape(cell)}" for cell in columns) + "<th>")
        for metric, cells in rows:
            value = mean(protocol.metrics[metric]) if metric in protocol.metrics else float("nan")
            width = 0.0 if np.isnan(value) else 12 * min(1.0, max(0.0, value / (100 if protocol.percent else 5)))
            parts.append(f"<tr><td>{html.escape(metric)}" + "".join(f"<td>{html.escape(cell)}" for cell in cells))
            parts.append(f'<td class=left><span class=bar style="width:{width:.2f}em"></span>')
        header = "".join(f"<th>{html.escape(metric)}" for metric, _ in rows if metric in protocol.metrics)
        parts.append(f"</table><details><summary>each question</summary><table><tr><th>question{header}")
        for q, question in enumerate(outcome.questions):
            cells = "".join(f"<td>{shown(number(protocol.metrics[m][q]), protocol.percent)}" for m, _ in rows if m in protocol.metrics)
            parts.append(f"<tr><td>{html.escape(question)}{cells}")
        parts.append("</table></details>")
    if outcome.skipped:
        lines = "".join(f"<tr><td>{html.escape(q)}<td class=left>{html.escape(why)}" for q, why in outcome.skipped.items())
        parts.append(f"<h2>Skipped</h2><table>{lines}</table>")
    parts.append(f"<h2>Settings</h2><pre>{html.escape(json.dumps(outcome.settings, indent=1))}</pre>")
    write_text(folder / "report.html", "\n".join(parts))
    return folder / "report.html"


def finish(outcome: Outcome, output: str | None, report: str | None, strict: bool) -> None:
    """Print the tables, write what was asked for; with `strict` anything skipped or constant is an error (after writing)."""
    document = metrics_document(outcome)
    print_outcome(outcome, document)
    if output:
        write_json(output, document)
        print(f"\nmetrics: {output}")
    if report:
        print(f"report: {write_report(outcome, document, report)}")
    counts = {
        "skipped questions": len(outcome.skipped), "questions with constant scores": len(outcome.constant),
        "missing metrics": len(document["missing_metrics"]), "trained-on questions": len(outcome.trained_on),
    }  # fmt: skip
    if strict and any(counts.values()):
        found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise UserError(f"--strict: {found}; complete the predictions, or leave --strict out.")


def add_common_arguments(parser: argparse.ArgumentParser, annotations_help: str) -> None:
    parser.add_argument("--predictions", required=True, help="prediction file (JSON list or JSON Lines, one entry for each question)")
    parser.add_argument("--annotations", help=annotations_help)
    parser.add_argument("--output", help="write metrics.json here")
    parser.add_argument("--report", metavar="DIR", help="write report.html and metrics.json into this folder")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of the annotations")
    parser.add_argument("--strict", action="store_true", help="a skipped question or constant scores are an error (exit code 2)")


def add_fusion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alpha", type=float, default=0.0, help="weight of the informative score (default %(default)s)")
    parser.add_argument("--beta", type=float, default=1.0, help="weight of the relevance score (default %(default)s)")
    parser.add_argument(
        "--epsilon", type=float, default=0.0, help="weight of uncertainty above --uncertainty_threshold (default %(default)s)"
    )
    threshold_help = "variance below which uncertainty costs nothing (default %(default)s)"
    parser.add_argument("--uncertainty_threshold", type=float, default=0.0, help=threshold_help)
