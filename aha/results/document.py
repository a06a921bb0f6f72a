"""Reading a metrics file (what `--output` of an evaluation wrote) that anybody may have edited: its form is checked before it is used.

metrics = read_document("metrics.json")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aha.core.checked import listed, number, text
from aha.core.files import read_json
from aha.errors import UserError


def read_document(path: str | Path) -> dict[str, Any]:
    """The content of a metrics file. Raises UserError naming the file and the place where it has not the form that evaluations write."""
    content = read_json(path, "metrics file")
    if not isinstance(content, dict) or not isinstance(content.get("protocols"), dict):
        raise UserError(f'{path} is no metrics file (no "protocols" in it); write one with python -m aha.eval.tvsum --output.')
    where = f"metrics file {path}"
    _leaves(content["protocols"], where, "protocols", _entry)
    for row, tree in _object(content.get("baselines", {}), where, "baselines").items():
        _leaves(tree, where, f"baselines/{row}", _entry)
    _leaves(content.get("confidence_intervals", {}), where, "confidence_intervals", _interval)
    benchmark = _object(content.get("settings", {}), where, "settings").get("benchmark")
    if benchmark is not None:
        text(benchmark, where, "settings/benchmark")
    for i, row in enumerate(listed(content.get("published", []), where, "published")):
        _published(row, where, f"published {i}")
    return content


def _object(value: Any, where: str, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not an object; evaluate again with --output, or repair the file.")
    return value


def _leaves(tree: Any, where: str, name: str, check: Callable[[Any, str, str], None]) -> None:
    """Checks what lies at PROTOCOL/METRIC, or at PROTOCOL/METRIC/SUBSET."""
    for protocol, metrics in _object(tree, where, name).items():
        for metric, value in _object(metrics, where, f"{name}/{protocol}").items():
            place = f"{name}/{protocol}/{metric}"
            subsets = isinstance(value, dict) and "mean" not in value
            for subset, one in value.items() if subsets else [("", value)]:
                check(one, where, f"{place}/{subset}" if subset else place)


def _number_or_null(value: Any, where: str, name: str) -> None:
    if value is not None:
        number(value, where, name)


def _entry(value: Any, where: str, name: str) -> None:
    """{"mean", "per_category"?, "per_video"?}, or null."""
    if value is None:
        return
    if "mean" not in _object(value, where, name):
        raise UserError(f"{where}: {name} has no mean; evaluate again with --output, or repair the file.")
    _number_or_null(value["mean"], where, f"{name}/mean")
    for part in ("per_category", "per_video"):
        for key, one in _object(value.get(part, {}), where, f"{name}/{part}").items():
            _number_or_null(one, where, f"{name}/{part}/{key}")


def _interval(value: Any, where: str, name: str) -> None:
    """[low, high], or null."""
    if value is None:
        return
    if len(listed(value, where, name)) != 2:
        raise UserError(f"{where}: {name} is {repr(value)[:40]}, not [low, high]; evaluate again with --output, or repair the file.")
    for bound in value:
        _number_or_null(bound, where, name)


def _published(row: Any, where: str, name: str) -> None:
    """A row of --published: what figures take from it."""
    row = _object(row, where, name)
    for key in ("method", "protocol", "split"):
        if not isinstance(row.get(key), str):
            text(row.get(key), where, f"{name}/{key}")
    for key in ("year", "comparable"):
        if key not in row:
            raise UserError(f"{where}: {name} has no {key}; evaluate again with --published and --output.")
    for metric, value in _object(row.get("numbers"), where, f"{name}/numbers").items():
        _number_or_null(value, where, f"{name}/numbers/{metric}")
    for metric, values in _object(row.get("per_category"), where, f"{name}/per_category").items():
        for category, value in _object(values, where, f"{name}/per_category/{metric}").items():
            _number_or_null(value, where, f"{name}/per_category/{metric}/{category}")
