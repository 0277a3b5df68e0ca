"""What comes of files from elsewhere: one of our own errors in one line, and no code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quietstar.errors import QuietStarError


def assert_one_line(error: QuietStarError) -> None:
    """Its message is a line that a person reads."""
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 2000


def refused(load: Callable[[], object], words: str | None = None, error: type[QuietStarError] = QuietStarError) -> None:
    """It raises one of our own errors that says so."""
    with pytest.raises(error, match=words) as refusal:
        load()
    assert_one_line(refusal.value)


def only_our_errors(load: Callable[[], object]) -> object:
    """What it returns; None where it raises one of our own errors."""
    try:
        return load()
    except QuietStarError as error:
        assert_one_line(error)
        return None


def with_images(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as Parquet, each with an image, and a list of one, that lie nowhere."""
    from datasets import Dataset, Features, Image, List
    from pyarrow import Table
    from pyarrow.parquet import write_table

    nowhere = {"path": "nowhere.png", "bytes": None}
    features = Dataset.from_list(rows).features | {"image": Image(), "images": List(Image())}
    table = Table.from_pylist([row | {"image": nowhere, "images": [nowhere]} for row in rows])
    write_table(table.cast(Features(features).arrow_schema), file)


class Surprise:
    """A pickle that leaves a witness when it is opened."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))
