"""Digests of files, by which a resumed run recognises its model and its texts.

Names and folders do not count. A small file is read whole; of a large one, its size and evenly spaced parts: training
changes every weight, but an edit of a few bytes in a large file may go unnoticed.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from quietstar.base.sources import find_source
from quietstar.base.untrusted import WEIGHTS

WHOLE = 2**26
"""files of up to this many bytes are read whole"""
PARTS, PART = 64, 2**20
"""how many parts of a larger file are read, and how many bytes each has"""


def digest_of_files(files: Iterable[str | Path]) -> str:
    """Return a digest of the contents of files, in this order.

    Raises:
        OSError: a file cannot be read.
    """
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        size = Path(file).stat().st_size
        found.update(size.to_bytes(8, "little"))
        with Path(file).open("rb") as opened:
            if size <= WHOLE:
                while part := opened.read(PART):
                    found.update(part)
            else:
                for i in range(PARTS):
                    opened.seek((size - PART) * i // (PARTS - 1))
                    found.update(opened.read(PART))
    return found.hexdigest()


def digest_of_model(name: str | Path) -> str | None:
    """Return a digest of a model's weights, in a file or a folder; None if the name is neither on this machine."""
    source = find_source(name)
    path = source.file if source.gguf_file else Path(name)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in WEIGHTS)
    return digest_of_files(files) if files else None
