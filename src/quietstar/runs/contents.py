"""What files hold, in a few characters: by this a run that is resumed knows its model and its texts again.

Names do not count, nor where a file lies. A small file is read whole; of a large one the size and parts spread evenly
over it are read: training changes every weight, but an edit of a few bytes in a large file may be passed over.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from quietstar.base.sources import find_source
from quietstar.base.untrusted import WEIGHTS

WHOLE = 2**26
"""bytes up to which a file is read whole"""
PARTS, PART = 64, 2**20
"""how many parts of a larger file are read, and how many bytes each has"""


def digest_of_files(files: Iterable[str | Path]) -> str:
    """A digest of files in this order.

    Raises:
        OSError: one cannot be read.
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
    """A digest of a model's weights, a file or those in a folder; None where the name is not of this machine."""
    source = find_source(name)
    path = source.file if source.gguf_file else Path(name)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in WEIGHTS)
    return digest_of_files(files) if files else None
