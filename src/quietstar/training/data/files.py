"""Local files that a `dataset` names: which they are, and what is in them."""

import glob
import os
from pathlib import Path

from quietstar.errors import DataError
from quietstar.text.files import COMPRESSED, kind_of

LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Extensions of local files, and what is in each. Those of text and of JSON may end in .gz or .zst besides."""

BESIDE_DATA = ("", ".md")
"""Extensions that a folder of data may hold besides: README.md, LICENSE."""


def is_local(name: str) -> bool:
    """Whether a `dataset` names files of this machine and not a dataset of the hub."""
    return (
        os.path.exists(os.path.expanduser(name))
        or any(wildcard in name for wildcard in "*?[")
        or kind_of(name) in LOADERS
        or name.startswith((".", "/", "~"))
    )


def find_files(name: str) -> tuple[str, list[str]]:
    """Find the files that a local `dataset` names.

    Args:
        name: a file, a folder (searched with the folders in it, hidden ones excepted) or a glob (`**` for any
            depth).

    Returns:
        What is in them, a value of LOADERS, and their paths, sorted.

    Raises:
        DataError: there is no such path, or its files are not all of one extension that can be read.
    """
    path = Path(name).expanduser()
    allowed = f"of one extension among {', '.join(LOADERS)}"
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        files = [file for file in files if file.suffix.lower() not in BESIDE_DATA]
        advice = f"pass a folder with files {allowed}, or a glob such as {os.path.join(name, '**', '*.jsonl')}"
    elif path.exists():
        files = [path]
        advice = f"pass a file {allowed}"
    else:
        files = [Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)]
        advice = f"pass a glob that matches files {allowed}"
        if not files:
            raise DataError(f"no file or folder is named, or matches, {name!r}: check the path")
    extensions = sorted(set(map(_extension, files)))
    if len(extensions) != 1 or extensions[0] not in LOADERS:
        found = ", ".join(extension or "no extension" for extension in extensions) or "no data files"
        raise DataError(f"{name!r} holds {found}: {advice}")
    return LOADERS[extensions[0]], sorted(str(file.resolve()) for file in files)


def _extension(file: Path) -> str:
    ending = file.suffix.lower()
    kind = kind_of(file)
    return ending if ending not in COMPRESSED or kind == ".parquet" else kind


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
