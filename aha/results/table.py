"""Console tables of the evaluation commands, at most 120 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 120
LABEL = 24


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
    """A title line, column names (long ones on several lines), and rows of (label, cells), right-aligned."""
    label = max([LABEL, *(len(row[0]) + 3 for row in rows)])
    longest = max((len(cell) for cells in [columns, *(row[1] for row in rows)] for cell in cells), default=0)
    width = max(12, min(longest + 2, (WIDTH - label) // max(1, len(columns))))
    headings = [_broken(name, width - 2) for name in columns]
    height = max(map(len, headings), default=0)
    lines = textwrap.wrap(title, WIDTH, subsequent_indent="    ")
    for line in range(height):
        cells = [heading[line - height + len(heading)] if line >= height - len(heading) else "" for heading in headings]
        lines.append((" " * label + "".join(cell.rjust(width) for cell in cells)).rstrip())
    lines += [("  " + name).ljust(label) + "".join(cell.rjust(width) for cell in cells) for name, cells in rows]
    return "\n".join(lines)


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
