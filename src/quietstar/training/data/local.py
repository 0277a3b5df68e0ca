"""Texts of local text and JSON files, read by `textfiles`, so that values reach a text as they were written.

The datasets library keeps the texts on disk, or reads on while training.
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
"""rows by which the columns of JSON are known: each row may leave some out"""

READER = 2
"""another number when this code makes other texts of the same files, which the datasets library may have kept"""


def rows_in(file: str, loader: str, sample_by: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a text or JSON file, each after where it stands, for messages.

    Args:
        file: its path.
        loader: "text" or "json".
        sample_by: what one row of a text file is: line, paragraph (up to an empty line) or document.

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
        begun = ""
        for line in lines:
            begun += line
            if begun.endswith("\n\n"):
                yield from filter(None, [begun.removesuffix("\n\n")])
                begun = ""
        yield from filter(None, [begun])


def look_at(files: list[str], loader: str, sample_by: str, wanted: list[str], *, at_all: bool) -> Columns | None:
    """The columns of rows in files, by the first LOOKED_AT; None where there is no row.

    Args:
        files: their paths.
        loader: "text" or "json".
        sample_by: see `rows_in`.
        wanted: columns that are looked for in later rows, too, where these do not have them.
        at_all: in all later rows; or in none, of files that are read while training.
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
    """Yield the text of each row of files, in a row of its own.

    Args:
        files: path, size, and times of change of each: a file's own, which may be set, and the system's.
        loader: "text" or "json".
        sample_by: see `rows_in`.
        to_text: makes a text of a row.
        reader: READER. By all arguments, the datasets library knows what it has kept.
    """
    for file, *_ in files:
        for where, row in rows_in(file, loader, sample_by):
            yield {to_text.name: to_text(row, where)}


def load_files(
    files: list[str], loader: str, sample_by: str, to_text: TextOf, split: str, *, streaming: bool, source: str
) -> Any:
    """The texts of files: a dataset on disk, or a stream that is read file by file.

    Args:
        files: their paths.
        loader: "text" or "json".
        sample_by: see `rows_in`.
        to_text: makes a text of a row.
        split: "train", or slices of it.
        streaming: read while training.
        source: the name of the dataset, for messages.

    Raises:
        DataError: a file cannot be read, a row does not hold what it should, or a stream is to be sliced.
    """
    datasets = _datasets()
    features = datasets.Features({to_text.name: datasets.Value("string")})
    stamps = [(file, (found := os.stat(file)).st_size, found.st_mtime_ns, found.st_ctime_ns) for file in files]
    given = {"files": stamps, "loader": loader, "sample_by": sample_by, "to_text": to_text, "reader": READER}
    if streaming and split != "train":
        raise DataError(
            f"{source!r} is read while training, and {split} is a slice of it: pass --split train, or --streaming false"
        )
    if streaming:
        return datasets.IterableDataset.from_generator(texts_in, features=features, gen_kwargs=given)
    texts = datasets.Dataset.from_generator(texts_in, features=features, gen_kwargs=given)
    if split == "train":
        return texts
    slices = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(texts)})
    return texts.select(chain.from_iterable(range(*slice(each.from_, each.to).indices(len(texts))) for each in slices))


def _datasets() -> ModuleType:
    return need("datasets", "data", "reading texts from the hub or from files")
