"""Console tables of the evaluation commands, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 80
LABEL = 24  # columns of the names of rows, at least
WIDEST_LABEL = 40  # a longer name has a line of its own


def shown(value: float | None, percent: bool = False) -> str:
    """A number of a table cell; an undefined one is a dash."""
    if value is None:
        return "-"
    digits = 2 if percent else 4
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero


def interval(bounds: Sequence[float] | None, percent: bool = False) -> str:
    if bounds is None:
        return "-"
    digits = 1 if percent else 3
    return f"{bounds[0]:.{digits}f}..{bounds[1]:.{digits}f}"


def block(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A title line, column names (long ones on several lines), and rows of (label, cells), right-aligned. Columns that do not fit beside
    each other follow below, with the labels again."""
    label = max([LABEL, *(len(row[0]) + 3 for row in rows if len(row[0]) + 3 <= WIDEST_LABEL)])
    longest = max((len(cell) for row in rows for cell in row[1]), default=0)
    fit = max(1, (WIDTH - label) // max(12, longest + 2))
    lines = textwrap.wrap(title, WIDTH, subsequent_indent="    ")
    for first in range(0, max(1, len(columns)), fit):
        shown = columns[first : first + fit]
        named = max([longest, *(len(name) for name in shown)], default=0)
        width = max(12, longest + 2, min(named + 2, (WIDTH - label) // max(1, len(shown))))
        headings = [_broken(name, width - 2) for name in shown]
        height = max(map(len, headings), default=0)
        if first:
            lines.append("")
        for line in range(height):
            cells = [heading[line - height + len(heading)] if line >= height - len(heading) else "" for heading in headings]
            lines.append((" " * label + "".join(cell.rjust(width) for cell in cells)).rstrip())
        for name, all_cells in rows:
            name, row = "  " + name, "".join(cell.rjust(width) for cell in all_cells[first : first + fit])
            if first and not row.strip() and any(all_cells):
                continue  # this row has nothing among these columns
            if len(name) >= label:
                lines += textwrap.wrap(name, WIDTH, subsequent_indent="    ", drop_whitespace=False) if len(name) > WIDTH else [name]
                name = ""
            if row.strip() or name:
                lines.append((name.ljust(label) + row).rstrip())
    return "\n".join(lines)


def wrapped(line: str) -> list[str]:
    """A sentence on lines that fit; what belongs to it is moved in."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent + "    ", break_long_words=False, break_on_hyphens=False) or [""]


def _broken(name: str, width: int) -> list[str]:
    """A column name on lines of at most `width` characters, broken after spaces, underscores and hyphens where it has some."""
    lines = [""]
    for part in name.replace("_", "_ ").replace("-", "- ").split(" "):
        joined = lines[-1] + ("" if lines[-1].endswith(("_", "-")) or not lines[-1] else " ") + part
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def named_list(names: Sequence[str], limit: int = 8) -> str:
    """A list of ids for a message: the first ones and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
