"""Names of local datasets, and their files."""

from pathlib import Path

import pytest

from quietstar.errors import DataError
from quietstar.training.data.files import find_files, is_local


@pytest.mark.parametrize(
    "name", ["a.txt", "x/*.jsonl", "./x", "/x", "~/x", "a?b", "X.JSONL", "a.jsonl.gz", "a.txt.zst"]
)
def test_names_taken_as_local(name: str) -> None:
    assert is_local(name)


def test_names_taken_as_hub_datasets(tmp_path: Path) -> None:
    assert not is_local("open-web-math/open-web-math")
    assert is_local(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "loader"),
    [
        (["a.txt", "b.txt.gz", "c.TXT.zst"], "text"),
        (["a.jsonl", "b.jsonl.gz", "README.md"], "json"),
        (["a.v2.json.zst"], "json"),
        (["a.parquet"], "parquet"),
        (["a.parquet.gz"], None),
        (["a.gz"], None),
        (["a.jsonl", "a.json"], None),
    ],
)
def test_compressed_files_are_what_they_hold(names: list[str], loader: str | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    if loader is None:
        with pytest.raises(DataError, match="pass a folder"):
            find_files(str(tmp_path))
    else:
        found, files = find_files(str(tmp_path))
        assert (found, len(files)) == (loader, len([name for name in names if not name.endswith(".md")]))
