"""Other queries than the benchmark's own, one a video, read from a user's file (`--query_map`).

    titles.json                               {video id: query}
    tvsum_tasks.py:TVSUM_AMBIGUOUS_TITLES     a table in Aha's own Python file: {video id: {"original_title", "ambiguous_title"}}

The Python file is parsed, never run; of a table's entries the words beside `original_title` are the query.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from aha.core.files import read_json, read_text
from aha.errors import UserError


def read_query_map(given: str | Path) -> dict[str, str]:
    """{video id: query}. Raises UserError naming the file, and for a Python file without a table's name those that it holds."""
    path, _, name = str(given).rpartition(":")
    if path.endswith(".py"):
        return _of_table(_tables(Path(path)), name, path)
    if str(given).endswith(".py"):
        names = ", ".join(_tables(Path(given)))
        raise UserError(f"query map {given} is a Python file; say which of its tables is meant, {given}:NAME (it holds {names or 'none'}).")
    queries = read_json(given, "query map")
    if not isinstance(queries, dict) or not all(isinstance(text, str) for text in queries.values()):
        raise UserError(f"query map {given} must be a JSON object {{video id: query text}}.")
    return queries


def _tables(path: Path) -> dict[str, Any]:
    """Every assignment NAME = {literal dictionary} of a Python file."""
    try:
        tree = ast.parse(read_text(path, "query map"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"query map {path} cannot be parsed as Python ({error}); check the file.") from error
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, TypeError):  # computed from something: no table of words
                continue
    return found


def _of_table(tables: dict[str, Any], name: str, path: str) -> dict[str, str]:
    if name not in tables:
        raise UserError(f"query map {path} holds no table {name}; it holds {', '.join(tables) or 'none'}.")
    queries = {}
    for video_id, entry in tables[name].items():
        texts = [text for key, text in entry.items() if key != "original_title"] if isinstance(entry, dict) else [entry]
        if len(texts) != 1 or not isinstance(texts[0], str) or not isinstance(video_id, str):
            raise UserError(f"query map {path}, {name}: video {video_id!r} has not one title beside original_title; repair the entry.")
        queries[video_id] = texts[0]
    return queries
