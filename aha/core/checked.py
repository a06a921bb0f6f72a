"""Values of JSON files, checked: what is not of the kind that it must be is a UserError that says where it stands and what to do.

seconds = number(entry.get("duration"), "val.json, element 3", "duration", 0.0)
"""

from __future__ import annotations

import math
from typing import Any

from aha.errors import UserError


def number(value: Any, where: str, name: str, low: float = -math.inf) -> float:
    """A finite number of at least `low`, or a UserError that says where it should be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        shown = "missing" if value is None else repr(value)[:40]
        raise UserError(
            f"{where}: {name} is {shown}, not a finite number{'' if low == -math.inf else f' of at least {low:g}'}; repair the entry."
        )
    return float(value)


def whole(value: Any, where: str, name: str, high: float = math.inf) -> int:
    """A whole number from 0 to `high`, also written as 3.0."""
    found = number(value, where, name, 0.0)
    if not found.is_integer() or found > high:
        raise UserError(
            f"{where}: {name} is {value!r:.40}, not a whole number from 0 {'on' if high == math.inf else f'to {high:g}'}; repair the entry."
        )
    return int(found)


def interval(value: Any, where: str, name: str) -> tuple[float, float]:
    """[start, end] in seconds with start <= end."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not [start, end] in seconds; repair the entry.")
    start, end = number(value[0], where, f"start of {name}"), number(value[1], where, f"end of {name}")
    if end < start:
        raise UserError(f"{where}: {name} ends ({end:g} s) before it starts ({start:g} s); repair the entry.")
    return start, end


def text(value: Any, where: str, name: str) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not text; repair the entry.")
    return value


def listed(value: Any, where: str, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not a list; repair the entry.")
    return value


def id_of(value: Any) -> str | None:
    """The id that a JSON value is: text, or a whole number (300.0 is 300); None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return writable(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None


def writable(text: str) -> str:
    """`text` with "?" for lone surrogates (half an emoji in a badly cut file): they have no UTF-8 form, and stop files and tokenizers."""
    return text.encode("utf-8", "replace").decode("utf-8")
