"""Untrusted trace files: other columns, other types, types with code; errors of one line."""

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar.inspection.trace import Trace
from tests.elsewhere import Surprise, only_our_errors
from tests.inspection.test_observe import IDS, thinker, traced

NAMES = st.sampled_from(
    ["row", "gain", "removed_delta", "filler_kl", "_delta", "x_delta", "x\ny_delta", "x\u2028", "", "\0"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@pytest.fixture(scope="module")
def found() -> Trace:
    return traced(thinker(), IDS, thought="hm", think="every:2")


@given(data=st.data())
@settings(max_examples=60)
def test_whatever_columns_there_are(
    found: Trace, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Removed, added, or renamed columns."""
    columns = dict(found.columns)
    for _ in range(data.draw(st.integers(1, 3))):
        values = columns.pop(data.draw(st.sampled_from(sorted(columns))))
        columns |= dict.fromkeys(data.draw(st.lists(NAMES, max_size=3)), values)
    folder = tmp_path_factory.mktemp("columns")
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if data.draw(st.booleans()):
        (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, records)))
    else:
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "trace.parquet")
    only_our_errors(lambda: repr(Trace.load(folder)))


ODD: dict[str, Any] = {
    "beyond the calendar": pyarrow.array([2**62] * 2, pyarrow.timestamp("ms")),
    "beyond a clock": pyarrow.array([2**62] * 2, pyarrow.duration("us")),
    "no UTF-8": pyarrow.array([b"\xff"] * 2).view(pyarrow.string()),
    "decimals": pyarrow.array(["1.5"] * 2).cast(pyarrow.decimal128(9, 2)),
    "of a dictionary": pyarrow.array(["a", "b"]).dictionary_encode(),
    "structs": pyarrow.array([{"a": 1}] * 2),
    "maps": pyarrow.array([[("a", 1)]] * 2, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    "times": pyarrow.array([1] * 2, pyarrow.timestamp("ns", tz="no/where")),
    "nothing": pyarrow.nulls(2),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["row", "piece", "gain", "thought_ids"])
def test_whatever_type_a_column_has(found: Trace, tmp_path: Path, kind: str, name: str) -> None:
    columns = {each: values[:2] for each, values in found.columns.items()} | {name: ODD[kind]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "trace.parquet")
    only_our_errors(lambda: repr(Trace.load(tmp_path)))


def test_a_type_of_a_files_own_is_not_unpickled(found: Trace, tmp_path: Path) -> None:
    """Arrow files may declare a column of a pickled Python type."""
    witness, path = tmp_path / "witness", tmp_path / "trace.parquet"
    own = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Surprise(witness)),
    }
    table = pyarrow.table(found.columns)
    place = table.column_names.index("row")
    table = table.set_column(place, pyarrow.field("row", pyarrow.int64(), metadata=own), table.column("row"))
    pyarrow.parquet.write_table(table, path)
    only_our_errors(lambda: repr(Trace.load(tmp_path)))
    assert not witness.exists()


@given(data=st.data())
@settings(max_examples=40)
def test_any_run_json_next_to_the_records(
    found: Trace, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("about")
    found.write(folder)
    parts = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), st.lists, max_leaves=4
    )
    about = st.dictionaries(st.sampled_from(["labels", "settings", "versions", "made", "model", "is_own"]), parts)
    text = data.draw(
        about.map(lambda fields: json.dumps(fields).encode()) | st.binary(max_size=9) | st.just(b"[" * 20_000)
    )
    (folder / "run.json").write_bytes(text)
    assert Trace.load(folder).columns == found.columns
    assert repr(Trace.load(folder))
