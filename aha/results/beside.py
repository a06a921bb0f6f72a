"""Our numbers beside published ones: the rows of a reproduction, which its report, the ledger and a model card print.

rows = [Row("1", "TVSum", "zero-shot weights", "aha_1fps_mean", "top5", 0.91, (0.89, 0.93), 50, 50, 0.916, "Aha, zero-shot (2025)", "yes")]
print(markdown(rows))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aha.core.files import read_json
from aha.errors import UserError
from aha.results import table

TITLES = ("row", "protocol", "metric", "ours", "95% interval", "videos", "published", "by", "comparable")
NO_RESULT = "NO RESULT"


@dataclass(frozen=True)
class Row:
    """One number of ours (None: undefined) and one published beside it (None: none). scored of how many videos; comparable: "yes", "with
    care: why", "no: why", "" where nothing is beside it."""

    table: str
    title: str
    row: str
    protocol: str
    metric: str
    ours: float | None
    interval: tuple[float, float] | None
    scored: int
    of: int
    published: float | None = None
    by: str = ""
    comparable: str = ""
    percent: bool = False
    trained_on: int = 0

    @property
    def cells(self) -> tuple[str, ...]:
        seen = f", {self.trained_on} of them trained on" if self.trained_on else ""
        shown = "" if self.published is None else table.shown(self.published, self.percent)
        return (
            self.row, self.protocol, self.metric, table.shown(self.ours, self.percent), table.interval(self.interval, self.percent),
            f"{self.scored} of {self.of}{seen}", shown, self.by, self.comparable,
        )  # fmt: skip


def markdown(rows: Iterable[Row]) -> str:
    """The rows as one Markdown table."""
    lines = [" | ".join(TITLES), " | ".join("---" for _ in TITLES)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row.cells) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def by_table(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """(table, title) -> its rows, in their order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.table, row.title), []).append(row)
    return found


def leaderboard_row(name: str, numbers: Mapping[str, float | None]) -> str:
    """The model as a row of a Markdown table, after its head."""
    heads, cells = ["model", *numbers], [name, *(table.shown(value) for value in numbers.values())]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), cells))


def as_document(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def rows_of(document: Mapping[str, Any], where: str) -> list[Row]:
    """The rows of a results file, read. Raises UserError where they have another form."""
    try:
        return [Row(**{**entry, "interval": entry["interval"] and tuple(entry["interval"])}) for entry in document["rows"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where} holds no rows of a reproduction ({error}); give the results.json that scripts/reproduce.sh wrote."
        ) from error


def read_results(path: str | Path) -> dict[str, Any]:
    """A results.json of scripts/reproduce.sh. Raises UserError."""
    document = read_json(path, "results file")
    if not isinstance(document, dict) or not isinstance(document.get("run"), dict):
        raise UserError(f"{path} is no results file (no run in it); give the results.json that scripts/reproduce.sh wrote.")
    rows_of(document, f"results file {path}")
    return document
