"""Tables and JSON are read back as what went in."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from quietstar.reporting.tables import finite, json_lines, markdown

RECORDS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers() | st.none(), max_size=3))


@given(RECORDS)
def test_a_record_is_a_line(records):
    lines = json_lines(records)
    assert [json.loads(line) for line in lines.split("\n")[:-1]] == records
    assert lines == "" or lines.endswith("\n")


def test_a_cell_stays_on_its_line_and_in_its_column():
    assert markdown(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 2 |\n"


def test_what_json_does_not_know_becomes_null():
    assert finite({"a": [1.5, math.nan, (math.inf, "b")]}) == {"a": [1.5, None, [None, "b"]]}
