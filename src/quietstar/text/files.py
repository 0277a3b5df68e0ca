r"""Opens, decodes and splits text into lines, from files and from standard input.

Text is UTF-8, with or without a byte-order mark, or UTF-16 or UTF-32 with one; the mark is not part of the text. Files
that end in .gz or .zst are decompressed. A line ends at \n or \r\n and nowhere else: \r alone, form feeds and U+2028
are ordinary characters.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from quietstar.errors import DataError, need

COMPRESSED = (".gz", ".zst")
"""suffixes of files that are decompressed"""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, which is a prefix of it
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

SPACE = re.compile(r"[ \t\n\r]*")
"""what JSON takes for white space"""

MARK = "\ufeff"
"""a decoded byte-order mark; concatenated files have one at the start of later lines, too"""

CHUNK = 2**20
"""bytes to decode at a time in encodings whose lines cannot be found among the bytes"""


class Number:
    """A number in a JSON file, as written there.

    `str` returns its characters; a format such as {n:03d} or {x:.2f} is applied to its value.
    """

    __slots__ = ("written",)

    def __init__(self, written: str) -> None:
        self.written = written

    def __str__(self) -> str:
        return self.written

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else self.written

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and other.written == self.written

    def __hash__(self) -> int:
        return hash(self.written)

    @property
    def value(self) -> int | float:
        """An int if it has neither point nor exponent (and is not thousands of digits long), else a float."""
        try:
            return int(self.written)
        except ValueError:
            return float(self.written)


_DECODER = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=Number)


def as_written(value: Any) -> str:
    """Return a value as JSON writes it: true and false, null, the characters of a number, a string without quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def kind_of(file: str | Path) -> str:
    """Return the suffix that tells a file's format, in lower case: .jsonl for rows.jsonl and for rows.JSONL.gz."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return suffixes[-2] if len(suffixes) > 1 else suffixes[-1]
    return suffixes[-1] if suffixes else ""


def read_text(file: str | Path) -> str:
    r"""Return the content of a text file, with \n at the end of each line.

    Raises:
        DataError: it cannot be read, or is not text.
        MissingExtraError: it is compressed, and the package that decompresses it is not installed.
    """
    with _opened(file) as stream:
        return "".join(ended_lines(stream, str(file)))


def read_texts(file: str | Path) -> list[str]:
    """Return the texts in a file: the column `text` of a .jsonl or .json file, or else the whole file as one.

    Raises:
        DataError: it cannot be read, it is not text, or a row has no text.
        MissingExtraError: it is compressed, and the package that decompresses it is not installed.
    """
    if kind_of(file) not in (".jsonl", ".json"):
        return [read_text(file)]
    texts = []
    for number, row in json_values(file):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(f'row {number} of {file} has no text; give rows of {{"text": ...}}, or a .txt file')
        texts.append(text)
    return texts


def read_lines(file: str | Path, *, ends: bool = False) -> Iterator[str]:
    r"""Yield the lines of a text file without line ends, or with \n if `ends`. Raises what `read_text` raises."""
    with _opened(file) as stream:
        yield from (ended_lines if ends else lines_of)(stream, str(file))


def lines_of(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of a stream of bytes without line ends.

    Raises:
        DataError: it cannot be read, or is not text.
    """
    return (line.removesuffix("\n") for line in ended_lines(stream, name))


def ended_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    r"""Yield the lines as `lines_of` does, each with its \n; the last line has one only if the text ends with it."""
    with _readable(name):
        head = stream.read(4)
        mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), b"")
        encoding = BYTE_ORDER_MARKS.get(mark, "utf-8")
        head = head.removeprefix(mark)
        lines = _utf8_lines(head, stream, name) if encoding == "utf-8" else _wide_lines(head, stream, name, encoding)
        for line in lines:
            yield line[:-2] + "\n" if line.endswith("\r\n") else line


def json_values(file: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield each value of a JSON file with its index, counted from 1; numbers within values are `Number`s.

    A .jsonl file has one value per line, and the index is the line's. A .json file is one list of values, or values one
    after the other; its text is held in memory, but only one value at a time.

    Raises:
        DataError: it cannot be read, or is not JSON; the message names the line.
    """
    if kind_of(file) == ".json":
        text = read_text(file)
        with _is_json(str(file)):
            yield from enumerate(_values_in(text), start=1)
        return
    for number, line in enumerate(read_lines(file), start=1):
        row = line.removeprefix(MARK)
        if row.strip():
            with _is_json(f"line {number} of {file}"):
                value = _DECODER.decode(row)
            yield number, value


def open_binary(file: str | Path) -> BinaryIO:
    """Open a file for reading bytes, decompressed if its name ends in .gz or .zst.

    Raises:
        OSError: it cannot be opened.
        MissingExtraError: it ends in .zst, and pyarrow is not installed.
    """
    ending = Path(file).suffix.lower()
    if ending == ".gz":
        return gzip.open(file)  # type: ignore[return-value]
    if ending == ".zst":
        pyarrow = need("pyarrow", "data", "reading .zst files")
        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
    return Path(file).open("rb")


@contextmanager
def _opened(file: str | Path) -> Iterator[BinaryIO]:
    with _readable(str(file)):
        stream = open_binary(file)
    with closing(stream):
        yield stream


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name} cannot be read: {why}; give a readable text file") from error


@contextmanager
def _is_json(what: str) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.doc.count("\n") else ""
        raise DataError(f"{what} is not JSON: {error.msg} ({line}character {error.colno}); fix it") from error
    except RecursionError as error:
        raise DataError(f"{what} cannot be parsed: its JSON is nested too deeply; fix it") from error


def _utf8_lines(head: bytes, stream: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(_byte_lines(head, stream), start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} is not UTF-8 text: byte {error.start + 1} of line {number} is 0x{line[error.start]:02X}; "
                "save it in UTF-8"
            ) from error


def _byte_lines(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of `head` followed by the rest of the stream."""
    *whole, begun = head.split(b"\n")
    yield from (line + b"\n" for line in whole)
    if line := begun + stream.readline():
        yield line
    yield from stream


def _wide_lines(head: bytes, stream: BinaryIO, name: str, encoding: str) -> Iterator[str]:
    """Yield the lines of text whose encoding has to be decoded to find line ends."""
    decoder = codecs.getincrementaldecoder(encoding)()
    n_lines, begun, more = 0, "", True
    while more:
        part = head or stream.read(CHUNK)
        head, more = b"", bool(part)
        try:
            begun += decoder.decode(part, final=not more)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} is not {encoding[:6].upper()} text, though its byte-order mark says so: it cannot be decoded "
                f"after line {n_lines}; save it in UTF-8"
            ) from error
        *whole, begun = begun.split("\n")
        n_lines += len(whole)
        yield from (line + "\n" for line in whole)
    if begun:
        yield begun


def _values_in(text: str) -> Iterator[Any]:
    """Yield the items of a list, or values written one after the other."""
    at = _after_space(text, 0)
    in_list = text.startswith("[", at)
    at = _after_space(text, at + in_list)
    begins = at
    while at < len(text):
        if in_list and text.startswith("]", at):
            if (at := _after_space(text, at + 1)) < len(text):
                raise json.JSONDecodeError("Extra data", text, at)
            return
        if in_list and at > begins:
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _after_space(text, at + 1)
        value, at = _DECODER.raw_decode(text, at)
        yield value
        at = _after_space(text, at)
    if in_list:
        raise json.JSONDecodeError("Expecting ']' at the end", text, at)


def _after_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]
