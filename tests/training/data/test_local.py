"""Values of local files keep their written form in texts, in memory and streamed."""

import json
import os
from pathlib import Path

import pytest

from quietstar.errors import DataError
from quietstar.training.data.datasets import DataArguments
from quietstar.training.data.local import LOOKED_AT
from quietstar.training.data.text_files import each_text
from quietstar.training.data.texts import load_texts

datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")

BOTH = pytest.mark.parametrize("streaming", [False, True])


def texts_of(dataset: Path, *, streaming: bool, **settings: object) -> list[str | None]:
    texts, _ = load_texts(DataArguments(dataset=str(dataset), eval_size=0, streaming=streaming, **settings), 0)
    return [*each_text(texts)] if not streaming else [row["text"] for row in texts]


VALUES = [
    "2021-03-04",
    "2021-03-04T05:06:07Z",
    "12:30",
    "18",
    "true",
    "nan",
    "",
]
WRITTEN = [
    "18",
    "2.5",
    "18.0",
    "12345678901234567890123",
    "1.2345678901234568e+22",
    "1E3",
    "-0.10",
    "true",
    "false",
    "NaN",
    "-Infinity",
]


@BOTH
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_values_are_as_they_were_written(name: str, streaming: bool, tmp_path: Path) -> None:
    rows = [f'{{"a": {json.dumps(value)}}}' for value in VALUES] + [f'{{"a": {value}}}' for value in WRITTEN]
    (tmp_path / name).write_text("\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]")
    assert texts_of(tmp_path, template="<{a}>", streaming=streaming) == [f"<{value}>" for value in VALUES + WRITTEN]


@BOTH
def test_a_column_of_dates_is_text(streaming: bool, tmp_path: Path) -> None:
    dates = ["2021-03-04", "2022-05-06"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": date}) + "\n" for date in dates))
    assert texts_of(tmp_path, streaming=streaming) == dates


@BOTH
def test_values_of_several_kinds_in_one_column(streaming: bool, tmp_path: Path) -> None:
    """Items of nested values, too; null gives no text."""
    rows = [
        '{"a": 18, "b": {"c": [1.50, "x"]}}',
        '{"a": 2.5, "b": {"c": ["y"]}}',
        '{"a": "z", "b": {"c": [true]}}',
        '{"a": null}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    texts = texts_of(tmp_path, template="{a} {b[c][0]}", streaming=streaming)
    assert texts == ["18 1.50", "2.5 y", "z true", None]


@BOTH
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [
        ("line", ["one\u2028two\x0b\x0c\x1c\x85", "a\rb", "", "last"]),
        ("paragraph", ["one\u2028two\x0b\x0c\x1c\x85\na\rb", "last"]),
        ("document", ["one\u2028two\x0b\x0c\x1c\x85\na\rb\n\nlast"]),
    ],
)
def test_text_ends_a_line_at_its_end_alone(sample_by, texts, mark, streaming, tmp_path):
    (tmp_path / "a.txt").write_bytes(mark + "one\u2028two\x0b\x0c\x1c\x85\r\na\rb\r\n\r\nlast".encode())
    assert texts_of(tmp_path, sample_by=sample_by, streaming=streaming) == texts


@BOTH
@pytest.mark.parametrize("sample_by", ["paragraph", "document"])
def test_texts_keep_their_own_line_ends(sample_by: str, streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n\n\nb\nc\n\n\n\nd\n")
    expected = {"paragraph": ["a", "\nb\nc", "d\n"], "document": ["a\n\n\nb\nc\n\n\n\nd\n"]}
    assert texts_of(tmp_path, sample_by=sample_by, streaming=streaming) == expected[sample_by]


@BOTH
def test_a_row_without_a_value_of_the_template_has_no_text(streaming: bool, tmp_path: Path) -> None:
    rows = [
        {"a": "x", "b": {"c": ["y"]}},
        {"a": "x"},
        {"b": {"c": ["y"]}},
        {"a": "x", "b": {"c": []}},
        {"a": "x", "b": {}},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts_of(tmp_path, template="{a}{b[c][0]}", streaming=streaming) == ["xy", None, None, None, None]


@BOTH
def test_a_column_that_most_rows_lack(streaming: bool, tmp_path: Path) -> None:
    rows = [{"a": "x"}] * LOOKED_AT + [{"b": "y"}, {"a": "z"}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts_of(file, text_column="a", streaming=streaming)[-3:] == ["x", None, "z"]
    if streaming:  # which is not read to its end to find it
        with pytest.raises(DataError, match="no column 'b', its columns are a;"):
            texts_of(file, text_column="b", streaming=streaming)
    else:
        assert texts_of(file, text_column="b", streaming=streaming)[-3:] == [None, "y", None]


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    """Also one with the same size and time; an unchanged one is not read again."""
    file = tmp_path / "a.jsonl"
    for text in ("one", "two"):
        file.write_text(json.dumps({"text": text}))
        os.utime(file, ns=(0, 0))
        assert texts_of(file, streaming=False) == [text]
    n_kept = len([*datasets.config.HF_DATASETS_CACHE.rglob("*.arrow")])
    assert texts_of(file, streaming=False) == ["two"]
    assert len([*datasets.config.HF_DATASETS_CACHE.rglob("*.arrow")]) == n_kept == 2


@pytest.mark.parametrize(
    ("split", "texts"),
    [("train[:2]", "ab"), ("train[-1:]", "e"), ("train[:40%]", "ab"), ("train[:1]+train[3:]", "ade")],
)
def test_slices_of_the_split(split: str, texts: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a\nb\nc\nd\ne\n")
    assert texts_of(file, split=split, streaming=False) == [*texts]


def test_each_file_of_a_stream_is_a_shard(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    texts, held_out = load_texts(DataArguments(dataset=str(tmp_path), eval_size=3, streaming=True), 0)
    assert (texts.n_files, [[*texts.read(shard)] for shard in range(3)]) == (3, [[], ["b2"], ["c1", "c2"]])
    assert held_out["text"][:] == ["a1", "a2", "b1"]


def test_files_are_named_by_the_row_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"a": {"b": 1}}\n')
    with pytest.raises(DataError, match=rf"\{{a\}}.*{os.sep}a.jsonl, line 2.*the value is a dict"):
        texts_of(tmp_path, template="{a}", streaming=False)
