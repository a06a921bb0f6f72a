"""notebooks/quickstart.ipynb: its cells run in order with the demo model, and it is stored without outputs."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from paths import REPO

NOTEBOOK = REPO / "notebooks" / "quickstart.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell as a notebook does; returns the value of a last line that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def test_the_notebook_runs_from_a_video_to_a_summary(tmp_path, monkeypatch, capsys):
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    values = [run_cell("".join(cell["source"]), names) for cell in cells]
    result, nothing = names["result"], names["nothing"]
    assert result.evidence.is_clear and result.highlights
    assert result.highlights[0].start < 5 or 20 <= result.highlights[0].start < 25  # the red things are there
    assert not nothing.evidence.is_clear and not nothing.highlights
    files = next(value for value in values if isinstance(value, list))
    assert {"curve.mp4", "poster.jpg", "reel.mp4", "report.html", "summary.json", "timeline.png"} <= set(files)
    picture = next(value for value in values if hasattr(value, "width"))
    assert picture.width > 1000
    assert values[-1] == pytest.approx({"strength": result.evidence.strength, "level": result.evidence.level, "is_clear": True})
    assert "no clear moment" in capsys.readouterr().out
