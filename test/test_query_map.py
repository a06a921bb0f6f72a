"""--query_map: our JSON and the ancestors' Python tables, which are parsed and never run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aha.core.query_map import read_query_map
from aha.errors import UserError

PYTHON = """
import os
os.mkdir("{folder}/was-run")
AMBIGUOUS = {{"abc-1": {{"original_title": "How to change tyres", "ambiguous_title": "Vehicle care"}}, "d": {{"original_title": "x", "ambiguous_title": "it's \\"y\\""}}}}
UNRELATED = {{"abc-1": {{"original_title": "How to change tyres", "unrelated_title": "Beekeeping"}}}}
PLAIN = {{"abc-1": "a query"}}
COMPUTED = {{"abc-1": os.getcwd()}}
BROKEN = {{"abc-1": {{"a": "x", "b": "y"}}}}
"""


def test_tables_of_a_python_file_are_read_and_the_file_is_not_run(tmp_path):
    path = tmp_path / "tvsum_tasks.py"
    path.write_text(PYTHON.format(folder=tmp_path))
    assert read_query_map(f"{path}:AMBIGUOUS") == {"abc-1": "Vehicle care", "d": 'it\'s "y"'}
    assert read_query_map(f"{path}:UNRELATED") == {"abc-1": "Beekeeping"}
    assert read_query_map(f"{path}:PLAIN") == {"abc-1": "a query"}
    for name, said in (("", "holds AMBIGUOUS, UNRELATED, PLAIN, BROKEN"), (":COMPUTED", "no table COMPUTED"), (":BROKEN", "not one title")):
        with pytest.raises(UserError, match=said):
            read_query_map(f"{path}{name}")
    assert not (tmp_path / "was-run").exists()


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=20), min_size=1, max_size=4))
def test_json_maps_are_read_as_they_are(tmp_path_factory, queries):
    path = tmp_path_factory.mktemp("map") / "titles.json"
    path.write_text(json.dumps(queries))
    assert read_query_map(path) == queries


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("m.json", "[]", "must be a JSON object"), ("m.json", '{"a": 1}', "must be a JSON object"), ("m.py:X", "X = {", "cannot be parsed"), ("none.py:X", None, "does not exist")],
)  # fmt: skip
def test_a_bad_map_is_one_sentence(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name.split(":")[0]).write_text(text)
    with pytest.raises(UserError, match=said):
        read_query_map(tmp_path / name)
