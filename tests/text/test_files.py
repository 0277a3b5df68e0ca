"""Text is read as written, in any encoding, compression and line ends; or one line tells why not."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietstar.errors import DataError, MissingExtraError
from quietstar.text.files import Number, as_written, json_values, kind_of, read_lines, read_text, read_texts
from tests.elsewhere import only_our_errors, refused

LINES = [
    "one",
    "zwei \u00e4\u00f6\u00fc \U0001f600",
    "",
    "no\u2028end\u2029\x0b\x0c\x1c\x1d\x1e\x85here",
    "old\rMac",
    " last",
]
ENCODINGS = {"utf-8": b"", "utf-8-sig": b"", "utf-16": b"", "utf-16-be": b"\xfe\xff", "utf-32": b""}


def zst(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def gz(data: bytes) -> bytes:
    """Return reproducible bytes, as names of tests are made of them."""
    return gzip.compress(data, mtime=0)


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gz, ".zst": zst}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_are_what_was_written(end: str, ending: str, encoding: str, tmp_path: Path) -> None:
    for last in ("", end):
        data = ENCODINGS[encoding] + (end.join(LINES) + last).encode(encoding)
        file = tmp_path / f"a.txt{ending}"
        file.write_bytes(COMPRESSED[ending](data))
        assert list(read_lines(file)) == LINES
        assert read_text(file) == "\n".join(LINES) + last.replace("\r", "")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_parts_one_after_the_other_are_one_text(ending: str, tmp_path: Path) -> None:
    """Files concatenated like `cat a.gz b.gz`, or written by parallel compressors."""
    file = tmp_path / f"a.txt{ending}"
    file.write_bytes(COMPRESSED[ending](b"one\ntw") + COMPRESSED[ending](b"o\nthree"))
    assert list(read_lines(file)) == ["one", "two", "three"]


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\u2028\x85"), max_size=30),
    encoding=st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]),
)
def test_whatever_a_text_is(tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str) -> None:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_bytes(text.encode(encoding))
    whole = text.replace("\r\n", "\n")
    assert read_text(file) == whole
    assert list(read_lines(file)) == whole.removesuffix("\n").split("\n") if whole else list(read_lines(file)) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "caf\u00e9".encode("latin-1"), "byte 4 of line 1 is 0xE9; save it in UTF-8"),
        ("a.txt", b"x\n" * 5000 + b"ab\xff", "byte 3 of line 5001 is 0xFF"),
        ("a.txt", "two\u2028lines\n\xff".encode("latin-1", "replace"), "line 2 is 0xFF"),
        ("a.txt", b"\xff\xfea\0\n\0b", "not UTF-16 text, .* after line 1"),
        ("a.txt.gz", b"plain", "cannot be read: Not a gzipped file"),
        ("a.txt.gz", gz(b"x" * 1000)[:-9], "cannot be read: Compressed file ended"),
        ("a.txt.gz", gz(b"x" * 1000)[:20] + b"\0" * 20, "cannot be read"),
        ("a.txt.zst", b"plain", "cannot be read"),
        ("a.txt.zst", zst(b"x" * 1000)[:-5], "cannot be read"),
        ("a.txt.gz", gz(b"\xff"), "byte 1 of line 1"),
        ("missing.txt", None, "cannot be read: No such file"),
        ("missing.txt.gz", None, "cannot be read: No such file"),
        ("missing.txt.zst", None, "cannot be read"),
    ],
)
def test_files_that_are_not_text_are_refused_in_one_line(
    name: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(lambda: read_text(tmp_path / name), f"{name} .*{says}", DataError)
    refused(lambda: list(read_lines(tmp_path / name)), says, DataError)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    refused(lambda: read_text(tmp_path), "cannot be read: Is a directory", DataError)


def test_what_decompresses_zst_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zst(b"x"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused(lambda: read_text(tmp_path / "a.txt.zst"), r"pyarrow .* \.zst files.*quietstar\[data\]", MissingExtraError)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", ".jsonl"),
        ("a.v1.JSONL.GZ", ".jsonl"),
        ("a.txt.zst", ".txt"),
        ("a.gz", ".gz"),
        ("a", ""),
        (".gz", ""),
    ],
)
def test_what_is_in_a_file(name: str, kind: str) -> None:
    assert kind_of(name) == kind


NUMBERS = ["18", "18.0", "2.50", "-0", "1e5", "12345678901234567890123", "1.2345678901234568e+22", "0.1E-7", "9" * 5000]


@pytest.mark.parametrize("written", NUMBERS)
@pytest.mark.parametrize("layout", ['{{"a": {}}}', '[{{"a": {}}}]', ' [ {{ "a" : {} }} ] '])
def test_numbers_are_their_characters(written: str, layout: str, tmp_path: Path) -> None:
    file = tmp_path / ("a.jsonl" if layout.startswith("{") else "a.json")
    file.write_text(layout.format(written))
    ((number, value),) = json_values(file)
    assert (number, str(value["a"]), f"{value['a']}", repr(value["a"])) == (1, written, written, written)
    assert as_written(value["a"]) == written


def test_a_format_is_of_the_value() -> None:
    assert (
        f"{Number('7'):03d}|{Number('2.50'):.3f}|{Number('1e3'):.0f}|{Number('12345678'):,}"
        == "007|2.500|1000|12,345,678"
    )


def test_other_values_are_as_json_writes_them() -> None:
    assert [*map(as_written, (True, False, None, "2021-03-04", 3))] == ["true", "false", "null", "2021-03-04", "3"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5), lambda of: st.lists(of) | st.dictionaries(st.text(max_size=3), of)
)


@given(values=st.lists(VALUES, max_size=5), indent=st.sampled_from([None, 1]), end=st.sampled_from(["\n", "\r\n"]))
def test_json_is_read_as_lines_as_a_list_and_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, values: list, indent: int | None, end: str
) -> None:
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.jsonl").write_bytes(
        end.join(json.dumps(value, ensure_ascii=False) for value in values).encode("utf-8")
    )
    (folder / "a.json").write_text(json.dumps(values, indent=indent))
    (folder / "b.json").write_text("\n".join(json.dumps(value, indent=indent) for value in values))
    expected = list(enumerate(values, start=1))
    assert list(json_values(folder / "a.jsonl")) == expected
    assert list(json_values(folder / "a.json")) == expected
    if not (values and isinstance(values[0], list)):  # otherwise it is read as the list of all values
        assert list(json_values(folder / "b.json")) == expected


def test_lines_of_json_have_the_numbers_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\n{"a": "x\u2028y"}\n\n  \n{"a": 1}\n')
    assert [number for number, _ in json_values(file)] == [2, 5]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_marks_of_files_that_were_put_together_are_not_json(end: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf[]\n" * 2 + b"\xef\xbb\xbf" + end)
    assert [*json_values(file)] == [(1, []), (2, [])]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", "[1] 2", "line 1 of .* Extra data"),
        ("a.jsonl", "[" * 20_000, "line 1 of .* nested too deeply"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', r"a.json is not JSON: Expecting ',' delimiter \(line 2, character 1\)"),
        ("a.json", "[1, 2", "is not JSON: Expecting ']'"),
        ("a.json", "[1,]", "is not JSON"),
        ("a.json", "[,1]", "is not JSON"),
        ("a.json", "[1] 2", "Extra data"),
        ("a.json", "[" * 20_000, "nested too deeply"),
        ("a.json", "nothing", "is not JSON"),
    ],
)
def test_files_that_are_not_json_are_refused_in_one_line(name: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    refused(lambda: list(json_values(tmp_path / name)), says, DataError)


@given(content=st.binary(max_size=30) | st.text('[]{}",:1e-. \n', max_size=20).map(str.encode))
def test_whatever_is_in_a_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.json", "a.jsonl", "a.txt", "a.txt.gz", "a.json.zst"):
        (folder / name).write_bytes(content)
        only_our_errors(lambda name=name: read_text(folder / name))
        only_our_errors(lambda name=name: list(json_values(folder / name)))


def test_texts_are_the_rows_of_json_or_the_whole_file(tmp_path: Path) -> None:
    for name, written, texts in (
        ("a.jsonl", '{"text": "x {", "n": 1}\n\n{"text": "y"}\n', ["x {", "y"]),
        ("a.json", '[{"text": "x"}, {"text": ""}]', ["x", ""]),
        ("a.txt", '{"text": "x"}\nand more\n', ['{"text": "x"}\nand more\n']),
    ):
        (tmp_path / name).write_text(written)
        assert read_texts(tmp_path / name) == texts


@pytest.mark.parametrize("row", ['{"question": "x"}', '"x"', '{"text": 3}', '{"text": null}'])
def test_a_row_without_a_text_is_named(row: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + row)
    with pytest.raises(DataError, match=r'row 2 of .*a\.jsonl has no text; give rows of {"text": \.\.\.}, or'):
        read_texts(tmp_path / "a.jsonl")
