"""Local files that a `dataset` names, and their kind."""

import glob
import os
from pathlib import Path

from quietstar.errors import DataError
from quietstar.text.files import COMPRESSED, kind_of

LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""extensions of local files -> loader; text and JSON may also be compressed (.gz, .zst)"""

BESIDE_DATA = ("", ".md")
"""extensions of other files that a data folder may contain: README.md, LICENSE"""


def is_local(name: str) -> bool:
    """Return whether a `dataset` names local files, not a dataset on the hub."""
    return (
        os.path.exists(os.path.expanduser(name))
        or any(wildcard in name for wildcard in "*?[")
        or kind_of(name) in LOADERS
        or name.startswith((".", "/", "~"))
    )


def find_files(name: str) -> tuple[str, list[str]]:
    """Return the loader of a local `dataset`, a value of LOADERS, and the sorted paths of its files.

    Args:
        name: a file, a folder (searched recursively, without hidden files) or a glob (`**` for any depth).

    Raises:
        DataError: the path does not exist, or its files do not all have one supported extension.
    """
    path = Path(name).expanduser()
    allowed = f"one of {', '.join(LOADERS)}"
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        files = [file for file in files if file.suffix.lower() not in BESIDE_DATA]
        glob_example = os.path.join(name, "**", "*.jsonl")
        advice = f"pass a folder of files with the same extension, {allowed}, or a glob such as {glob_example}"
    elif path.exists():
        files = [path]
        advice = f"pass a file with extension {allowed}"
    else:
        files = [Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)]
        advice = f"pass a glob of files with the same extension, {allowed}"
        if not files:
            raise DataError(f"no file or folder matches {name!r}: check the path")
    extensions = sorted(set(map(_extension, files)))
    if len(extensions) != 1 or extensions[0] not in LOADERS:
        found = ", ".join(extension or "no extension" for extension in extensions) or "no data files"
        raise DataError(f"{name!r} has {found}: {advice}")
    return LOADERS[extensions[0]], sorted(str(file.resolve()) for file in files)


def _extension(file: Path) -> str:
    ending = file.suffix.lower()
    kind = kind_of(file)
    return ending if ending not in COMPRESSED or kind == ".parquet" else kind


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
