"""Published rows beside ours: only where protocol, split and videos are the same; the others are listed with the reason.

    rows = read_rows("tvsum")
    print(render(rows, metrics["protocols"], {"all50": Counted(50, 50), "val10": Counted(10, 10)}, task.layout()))

The rows are data, one file a benchmark (published_rows/NAME.json), each with the place where its numbers were read, in the units of our
metric of the same name. A row whose method was measured otherwise has `unlike`: why it is never compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from textwrap import wrap
from typing import Any

from aha.core.files import read_json
from aha.errors import UserError
from aha.results.layout import Layout
from aha.results.table import WIDTH, block, shown


@dataclass(frozen=True, slots=True)
class Row:
    """One published result. split: which videos (val10, test, ...); videos: how many, None where the source does not say."""

    method: str
    paper: str
    year: int
    protocol: str
    split: str
    videos: int | None
    numbers: Mapping[str, float]
    read_in: str
    unlike: str = ""
    per_category: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.method} ({self.year})"


@dataclass(frozen=True, slots=True)
class Counted:
    """Of the `of` videos of a published split, `videos` have a number here."""

    videos: int
    of: int


def read_rows(benchmark: str) -> list[Row]:
    """The rows that ship for a benchmark; none for one without a file. Raises UserError for a file of another form."""
    source = resources.files("aha.eval").joinpath("published_rows", f"{benchmark}.json")
    if not source.is_file():
        return []
    with resources.as_file(source) as path:
        try:
            return [Row(**entry) for entry in read_json(path, "published rows")]
        except TypeError as error:
            raise UserError(f"published rows {path} hold an entry of another form ({error}); install the project again.") from error


def why_not(row: Row, protocols: Mapping[str, Any], splits: Mapping[str, Counted]) -> str:
    """Why a row may not stand beside these numbers; "" where it may."""
    if row.unlike:
        return row.unlike
    if row.protocol not in protocols:
        return f"its protocol {row.protocol} was not evaluated here"
    if row.split not in splits:
        return f"it is on the split {row.split}, which was not evaluated here"
    scored = splits[row.split]
    if scored.videos < scored.of:
        return f"it is on all {scored.of} of {row.split}, and {scored.videos} of them were scored here"
    if row.videos is not None and row.videos != scored.of:
        return f"it is on {row.videos} of {row.split}, and {scored.of} were scored here"
    return ""


def ours(protocols: Mapping[str, Any], row: Row, metric: str) -> float | None:
    """Our number for a metric of a row, from the "protocols" part of a metrics file (with subsets: the row's split)."""
    return _entry(protocols, row, metric).get("mean")


def _entry(protocols: Mapping[str, Any], row: Row, metric: str) -> Mapping[str, Any]:
    value = protocols.get(row.protocol, {}).get(metric, {})
    return value.get(row.split, value)


def render(rows: Sequence[Row], protocols: Mapping[str, Any], splits: Mapping[str, Counted], layout: Layout) -> str:
    """One table for each protocol with the rows that are comparable, ours first, and a line for each that is not."""
    reasons = {id(row): why_not(row, protocols, splits) for row in rows}
    lines: list[str] = []
    kept = [row for row in rows if not reasons[id(row)]]
    for protocol, split in dict.fromkeys((row.protocol, row.split) for row in kept):
        group = [row for row in kept if (row.protocol, row.split) == (protocol, split)]
        metrics = list(dict.fromkeys(metric for row in group for metric in row.numbers))
        percent = [layout.is_percent(protocol, metric) for metric in metrics]
        cells = [("this prediction", [shown(ours(protocols, group[0], metric), p) for metric, p in zip(metrics, percent)])]
        cells += [(row.name, [shown(row.numbers.get(metric), p) for metric, p in zip(metrics, percent)]) for row in group]
        lines += ["", block(f"{protocol}, {split}: published rows of the same protocol and videos", metrics, cells)]
        for metric, p in zip(metrics, percent):
            detailed = [row for row in group if metric in row.per_category]
            names = list(detailed[0].per_category[metric]) if detailed else []
            mine = _entry(protocols, group[0], metric).get("per_category", {})
            parts = [("this prediction", [shown(mine.get(name), p) for name in names])]
            parts += [(row.name, [shown(row.per_category[metric].get(name), p) for name in names]) for row in detailed]
            lines += ["", block(f"{metric}, {split}, per category", names, parts)] if names else []
    left_out = [row for row in rows if reasons[id(row)]]
    if left_out:
        lines += ["", "not comparable, because"]
        for row in left_out:
            numbers = ", ".join(f"{metric} {value:g}" for metric, value in row.numbers.items())
            said = f"{row.name}, {row.protocol}: {numbers} ({row.read_in}): {reasons[id(row)]}"
            lines += wrap(said, WIDTH - 2, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines[1:]) if lines else "no published row ships for this benchmark: none could be traced to a source"


def document(rows: Sequence[Row], protocols: Mapping[str, Any], splits: Mapping[str, Counted]) -> list[dict[str, Any]]:
    """The "published" part of a metrics file: every row with `comparable` and, where it is not, `because`."""
    result = []
    for row in rows:
        reason = why_not(row, protocols, splits)
        entry = {
            "method": row.method, "paper": row.paper, "year": row.year, "protocol": row.protocol, "split": row.split,
            "numbers": dict(row.numbers), "per_category": {metric: dict(values) for metric, values in row.per_category.items()},
            "read_in": row.read_in, "comparable": not reason,
        }  # fmt: skip
        result.append(entry | ({"because": reason} if reason else {}))
    return result
