"""Texts of local text and JSON files, read by `quietstar.text.files` so that values keep their written form.

The datasets library stores the texts on disk, or streams them while training.
"""

import os
from collections.abc import Iterator
from itertools import chain
from types import ModuleType
from typing import Any

from quietstar.errors import DataError, need, shown
from quietstar.text.files import json_values, kind_of, read_lines
from quietstar.training.data.columns import Columns, TextOf

LOOKED_AT = 1000
"""rows read to find the columns of JSON, where any row may lack some"""

READER = 2
"""version of this code; raise it when the same files give other texts, so that the cache of texts is invalidated"""


def rows_in(file: str, loader: str, sample_by: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a text or JSON file, each with its place for messages.

    Args:
        file: its path.
        loader: "text" or "json", here and below.
        sample_by: unit of a row in a text file: line, paragraph (up to an empty line) or document.

    Raises:
        DataError: the file cannot be read, or a row is not an object.
    """
    if loader == "text":
        yield from ((file, {"text": text}) for text in _samples(file, sample_by))
        return
    what = "item" if kind_of(file) == ".json" else "line"
    for number, row in json_values(file):
        where = f"{file}, {what} {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where} is {shown(row)}, not an object: give an object with the columns of a row")
        yield where, row


def _samples(file: str, sample_by: str) -> Iterator[str]:
    lines = read_lines(file, ends=sample_by != "line")
    if sample_by == "line":
        yield from lines
    elif sample_by == "document":
        yield from filter(None, ["".join(lines)])
    else:
        paragraph = ""
        for line in lines:
            paragraph += line
            if paragraph.endswith("\n\n"):
                yield from filter(None, [paragraph.removesuffix("\n\n")])
                paragraph = ""
        yield from filter(None, [paragraph])


def look_at(files: list[str], loader: str, sample_by: str, wanted: list[str], *, at_all: bool) -> Columns | None:
    """Return the columns of files by their first LOOKED_AT rows, or None if there are no rows.

    With `at_all`, later rows are searched for wanted columns that the first rows lack, which is not done for
    files that are read while training.
    """
    kinds: dict[str, set[type]] = {}
    missing, n = set(wanted), 0
    for n, (_, row) in enumerate(chain.from_iterable(rows_in(file, loader, sample_by) for file in files), start=1):
        if n <= LOOKED_AT or not missing.isdisjoint(row):
            for name, value in row.items():
                kinds.setdefault(name, set()).add(type(value))
        missing -= row.keys()
        if n >= LOOKED_AT and not (missing and at_all):
            break
    return Columns.of(kinds) if n else None


def texts_in(
    files: list[tuple[str, int, int, int]], loader: str, sample_by: str, to_text: TextOf, reader: int
) -> Iterator[dict[str, str | None]]:
    """Yield a row with the text of each row of files.

    The arguments are the key of the datasets library's cache: files have path, size, modification time and change time,
    and `reader` is READER.
    """
    for file, *_ in files:
        for where, row in rows_in(file, loader, sample_by):
            yield {to_text.name: to_text(row, where)}


def load_files(
    files: list[str], loader: str, sample_by: str, to_text: TextOf, split: str, *, streaming: bool, source: str
) -> Any:
    """Load the texts of files as a dataset on disk, or as a stream that is read file by file.

    The split is "train", or slices of it.

    Raises:
        DataError: a file cannot be read, a row has a wrong type, or a slice of a stream was requested.
    """
    datasets = datasets_library()
    features = datasets.Features({to_text.name: datasets.Value("string")})
    stamps = [(file, (stat := os.stat(file)).st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file in files]
    given = {"files": stamps, "loader": loader, "sample_by": sample_by, "to_text": to_text, "reader": READER}
    if streaming and split != "train":
        raise DataError(
            f"{source!r} is streamed, and {split} is a slice of it; give --split train, or --streaming false"
        )
    if streaming:
        return datasets.IterableDataset.from_generator(texts_in, features=features, gen_kwargs=given)
    texts = datasets.Dataset.from_generator(texts_in, features=features, gen_kwargs=given)
    if split == "train":
        return texts
    slices = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(texts)})
    return texts.select(chain.from_iterable(range(*slice(part.from_, part.to).indices(len(texts))) for part in slices))


def datasets_library() -> ModuleType:
    """Return the datasets library, or raise MissingExtraError."""
    return need("datasets", "data", "reading texts from the hub or from files")
