"""A trace survives writing and loading; files that are not traces are refused in one line."""

import json
from contextlib import suppress
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietstar.errors import DataError, SettingsError
from quietstar.inspection import schema
from quietstar.inspection.results import write_results
from quietstar.inspection.trace import Trace
from quietstar.runs.folders import claim
from tests.inspection.test_observe import IDS, thinker, traced


@pytest.fixture(scope="module")
def found() -> Trace:
    return traced(thinker(), IDS, IDS[:2], thought="hm", think="every:2")


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_round_trip(found: Trace, format: str, tmp_path: Path) -> None:
    path = found.write(tmp_path / "run", format)
    again = Trace.load(path.parent)
    assert again.columns == found.columns
    assert (again.model, again.made, again.settings, again.labels, again.versions) == (
        found.model,
        found.made,
        found.settings,
        found.labels,
        found.versions,
    )
    assert again.summary == found.summary
    assert again.html() == found.html()


def test_pandas_reads_the_files(found: Trace, tmp_path: Path) -> None:
    table = found.to_pandas()
    assert list(table.columns) == list(schema.schema_of(schema.interventions_in(list(found.columns))))
    by_line = pandas.read_json(found.write(tmp_path / "lines"), lines=True, dtype=False)
    by_arrow = pandas.read_parquet(found.write(tmp_path / "arrow", "parquet"))
    for other in (by_line, by_arrow):
        assert list(other.columns) == list(table.columns)
        assert list(other["piece"]) == list(table["piece"])
        assert other["gain"].dropna().tolist() == pytest.approx(table["gain"].dropna().tolist())
        assert [list(of) for of in other["thought_ids"].dropna()] == [list(of) for of in table["thought_ids"].dropna()]


def test_parquet_has_the_types_of_the_schema(found: Trace, tmp_path: Path) -> None:
    fields = pyarrow.parquet.read_schema(found.write(tmp_path, "parquet"))
    assert str(fields.field("position").type) == "int64"
    assert not fields.field("position").nullable
    assert str(fields.field("thought_logprob").type).startswith("list<")
    assert str(fields.field("removed_flips").type) == "bool"


def test_a_written_folder_is_all_that_is_needed(found: Trace, tmp_path: Path) -> None:
    found.write(tmp_path / "new" / "folder")
    again = Trace.load(tmp_path / "new" / "folder")
    assert (again.model, again.labels, again.settings) == (found.model, found.labels, found.settings)
    with pytest.raises(SettingsError, match="format is 'csv'; choose from jsonl, parquet"):
        found.write(tmp_path, "csv")


def test_no_trace_is_written_over_another(found: Trace, tmp_path: Path) -> None:
    """Records of one trace with the settings of another would be a third trace."""
    path = found.write(tmp_path / "run")
    before = path.read_bytes()
    for format in ("jsonl", "parquet"):
        with pytest.raises(SettingsError, match="already has a run"):
            found.write(tmp_path / "run", format)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="is not empty, and not created by quietstar"):
        found.write(tmp_path / "mine", overwrite=True)
    assert path.read_bytes() == before
    found.write(tmp_path / "run", "parquet", overwrite=True)
    assert [each.name for each in sorted((tmp_path / "run").iterdir())] == ["run.json", "trace.parquet"]
    (tmp_path / "run" / "trace.jsonl").write_bytes(before)
    with pytest.raises(DataError, match=r"has both of trace.jsonl and trace.parquet"):
        Trace.load(tmp_path / "run")


def test_the_records_alone_are_a_trace(found: Trace, tmp_path: Path) -> None:
    found.write(tmp_path)
    (tmp_path / "run.json").unlink()
    again = Trace.load(tmp_path)
    assert again.columns == found.columns
    assert set(again.labels) == set(found.labels)
    for about in ("[]", "{", '{"labels": 3}', '{"settings": []}'):
        (tmp_path / "run.json").write_text(about)
        assert Trace.load(tmp_path).columns == found.columns


def test_in_a_notebook_it_shows_the_report_and_in_a_terminal_the_summary(found: Trace) -> None:
    shown = found._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "<script" not in shown
    assert "allow-same-origin" not in shown
    assert found.summary.sentences[0] in repr(found)


def test_a_folder_without_a_trace(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has neither of trace.jsonl and trace.parquet; give a folder of"):
        Trace.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("row", None),
        ("position", "0"),
        ("position", True),
        ("thought", 1),
        ("thought_ids", ["a"]),
        ("thought_ids", 3),
        ("piece", 3),
        ("gain", "1"),
        ("gain", float("nan")),
        ("base_entropy", float("inf")),
        ("token_id", 10**30),
        ("gain", 10**400),
        ("mixing_weight", 1e300),
        ("removed_flips", 0.5),
        ("thought_text", "\ud800"),
        ("base_top_ids", [3, None]),
        ("base_top_tokens", [None]),
        ("base_logprob", None),
    ],
)
def test_values_of_other_types_are_refused(found: Trace, name: str, value: object, tmp_path: Path) -> None:
    path = found.write(tmp_path)
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {name: value})
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"{name} of record 3 is"):
        Trace.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"thought_ids": [3]},
            "thought_ids, thought_tokens, thought_logprob differ in length; they should be equally",
        ),
        ({"base_top_tokens": []}, "base_top_ids, base_top_tokens, base_top_logprob differ in length"),
        ({"next_id": None}, "next_id, next_token differ in length"),
        ({"filler_thought_tokens": None}, "filler_thought_ids, filler_thought_tokens differ in length"),
        ({"removed_top_id": None}, "removed_top_id, removed_top_token differ in length"),
        ({"base_logprob": []}, "record 2 has a gain but no thought or base_logprob"),
        ({"base_logprob": [None]}, "record 2 has a gain but no thought or base_logprob"),
        ({"thought": False, "gain": None}, "in record 2, thought and thought_ids disagree"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(found: Trace, values: dict, said: str, tmp_path: Path) -> None:
    path = found.write(tmp_path)
    lines = path.read_text().splitlines()
    assert json.loads(lines[1])["thought"]
    lines[1] = json.dumps(json.loads(lines[1]) | values)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=said):
        Trace.load(tmp_path)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, 1e300, -1e29, 1e-300])
    | st.text(st.characters(categories=["L", "Cs", "Cc", "Po"]), max_size=3),
    lambda of: st.lists(of, max_size=6),
    max_leaves=6,
)


@given(data=st.data())
def test_loaded_traces_can_be_summarized_shown_and_written(found: Trace, tmp_path_factory, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    """Any values in records are either refused, or everything that a trace does works."""
    folder = tmp_path_factory.mktemp("changed")
    records = [dict(record) for record in found.records()]
    for _ in range(data.draw(st.integers(1, 3))):
        record = data.draw(st.sampled_from(records))
        name = data.draw(st.sampled_from(sorted(record)))
        record[name] = data.draw(st.sampled_from(found.columns[name]) | VALUES)
    (folder / "trace.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    about = {**found.about, data.draw(st.sampled_from(["labels", "settings", "made"])): data.draw(VALUES)}
    about["settings"] = {"seed": data.draw(VALUES)}
    (folder / "run.json").write_text(json.dumps(about))
    try:
        changed = Trace.load(folder)
    except DataError:
        return
    write_results(changed, claim(folder / "again", changed.about), format="parquet")
    assert repr(changed)
    assert Trace.load(folder / "again").columns == changed.columns


@given(data=st.data())
def test_broken_files_only_raise_this_packages_errors(found: Trace, tmp_path_factory, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("broken")
    format = data.draw(st.sampled_from(["jsonl", "parquet"]))
    path = found.write(folder, format)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path.write_bytes(bytes(content))
    with suppress(DataError):
        Trace.load(folder)


@given(lines=st.lists(st.sampled_from(["{}", "[]", "3", "null", '{"row": 0}', "{", "", '{"row": NaN}', "[" * 2000])))
def test_lines_that_are_not_records(lines: list[str], tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("lines")
    (folder / "trace.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError):
        Trace.load(folder)
