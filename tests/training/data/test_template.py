"""Templates combine columns and their items into a text; nothing else is read, and nothing runs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietstar.errors import DataError, QuietStarError, SettingsError
from quietstar.training.data.datasets import DataArguments
from quietstar.training.data.template import fill_template, template_columns
from quietstar.training.data.texts import load_texts
from tests.elsewhere import only_our_errors


class Watched:
    """A value that records when any of its attributes is read."""

    secret = "read"

    def __getitem__(self, key: object) -> str:
        pytest.fail(f"item {key} of an object was read")


ROW = {
    "a": "x",
    "n": 7,
    "f": 0.5,
    "t": {"k": ["u", {"v": "w"}], "0": "zero"},
    "none": None,
    "a.b": "dotted",
    "bytes": b"x",
    "o": Watched(),
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a}", "x"),
        ("{{{a}}}", "{x}"),
        ("{a!r}", "'x'"),
        ("{n:03d}|{f:.2f}|{a:>3}", "007|0.50|  x"),
        ("{t[k][0]}{t[k][1][v]}{t[0]}", "uwzero"),
        ("{a.b}", "dotted"),
        ("{a}{none}", None),
        ("{a}{missing}", None),
        ("{none[k][0]}", None),
        ("{t[missing][0]}{t[k]}", None),
        ("{t[k][2]}{t[k]}", None),
        ("{t[__class__]}", None),
    ],
)
def test_what_a_template_may_ask_for(template: str, text: str | None) -> None:
    assert fill_template(template, ROW, "rows") == text


@pytest.mark.parametrize(
    "template",
    [
        "{o[secret]}",
        "{t[k].__class__}",
        "{t[k][0].upper}",
        "{n[0]}",
        "{t[k][x]}",
        "{bytes}",
        "{a[0}",
        "{a[]}",
        "{a]}",
        "{a!x}",
        "{a:1000000000}",
        "{f:.1000000000f}",
        "{f:1000}",
        "{n:٩٩٩٩}",
        "{a:{n}}",
        "{a:{a.__class__}}",
        "{n:c}{t[k]}",
        "{f:c}",
    ],
)
def test_what_it_may_not(template: str) -> None:
    """In one line, before any attribute is read or any text becomes a billion characters long."""
    with pytest.raises((SettingsError, DataError)) as refusal:
        fill_template(template, ROW, "rows")
    assert len(str(refusal.value).splitlines()) == 1
    assert template in str(refusal.value)


@pytest.mark.parametrize("template", ["{a.__class__.__mro__}", "{a[0].__class__}", "{a:1000000000}", "{[a]}"])
def test_templates_are_checked_before_any_row_is_read(template: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "x"}) + "\n")
    with pytest.raises(QuietStarError, match="template"):
        load_texts(DataArguments(dataset=str(path), template=template, eval_size=0), seed=0)


@pytest.mark.parametrize(
    "template",
    [
        "{a.__class__}",
        "{a.__class__.__mro__}",
        "{a.__class__.__init__.__globals__[os]}",
        "{o.secret}",
        "{t.keys}",
        "{n.real}",
        "{0.a}",
    ],
)
def test_attributes_are_no_items(template: str, tmp_path: Path) -> None:
    """A dot is part of a column's name, so the row lacks that column and the dataset is refused."""
    assert fill_template(template, ROW, "rows") is None
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "x", "n": 7, "t": {}, "o": {"secret": "s"}}) + "\n")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"which .* does not have"):
            load_texts(DataArguments(dataset=str(path), template=template, eval_size=0, streaming=streaming), seed=0)


PIECES = st.lists(
    st.sampled_from([*"{}[]:!.ars0% ", "{a}", "{t[k]}", "__class__", "999", "9" * 9, "k", "x"]), max_size=9
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=3),
    lambda of: st.lists(of, max_size=2) | st.dictionaries(st.text(max_size=2) | st.just("k"), of, max_size=2),
    max_leaves=4,
)


@given(template=PIECES.map("".join), row=st.fixed_dictionaries({"a": VALUES, "t": VALUES}))
def test_whatever_a_template_and_a_row_are(template: str, row: dict) -> None:
    """The result is a short text, None, or a one-line error of this package."""
    text = only_our_errors(lambda: fill_template(template, row, "rows"))
    columns = only_our_errors(lambda: template_columns(template))
    if isinstance(text, str) and isinstance(columns, list):
        assert set(columns) <= set(row)
        text.encode()
        assert len(text) < 3000 * (1 + len(columns))


CODE = st.sampled_from(
    ["{a.__class__}", "{{ 7*7 }}", "$(touch WITNESS)", "`touch WITNESS`", "__import__('os')", "%s%n", "\0"]
)


@given(value=CODE | st.text(max_size=20))
def test_values_are_never_parsed_as_templates(value: str) -> None:
    if not any("\ud800" <= character <= "\udfff" for character in value):
        assert fill_template("Q: {a}", {"a": value}, "rows") == f"Q: {value}"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_script_next_to_data_does_not_run(streaming: bool, tmp_path: Path) -> None:
    folder, witness = tmp_path / "rows", tmp_path / "witness"
    folder.mkdir()
    (folder / "rows.py").write_text(f"import pathlib\npathlib.Path({str(witness)!r}).touch()\n")
    for _ in range(2):  # alone, and beside rows
        with pytest.raises(DataError, match=r"has .*\.py") as refusal:
            load_texts(DataArguments(dataset=str(folder), eval_size=0, streaming=streaming), seed=0)
        assert len(str(refusal.value).splitlines()) == 1
        (folder / "rows.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(DataError):
        load_texts(DataArguments(dataset=str(folder / "rows.py"), eval_size=0, streaming=streaming), seed=0)
    assert not witness.exists()
