"""What a teacher said of rows, in files: the likeliest tokens of each prediction, and the mass of all others.

A row is known by its tokens and by which of them have a label, whatever batch it is in.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quietstar.errors import CheckpointError, SettingsError

ABOUT = "cache.json"
"""file that says of which teacher a cache is"""
NAMES = ("tokens", "logprob", "rest")
BYTES = 8
"""of a token and its log-probability"""

Row = tuple[Tensor, Tensor]
"""token ids, and which places of a row have a label"""
Said = Sequence[Sequence[Tensor]]
"""tokens [n, k], log-probabilities [n, k] and the rest's [n], each of every row"""


class Cache:
    """A folder of what a teacher said.

    Args:
        folder: new, or a cache of the same teacher.
        k: tokens that are kept of each prediction.
        about: the teacher, and how it thinks.

    Raises:
        SettingsError: the folder has something else in it.
    """

    def __init__(self, folder: str, k: int, about: dict[str, Any]) -> None:
        self.folder, self.k, self.about = Path(folder), k, {"cache_tokens": k, **about}
        file = self.folder / ABOUT
        try:
            before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
            there = self.folder.iterdir() if before is None and self.folder.exists() else ()
            is_other = any(not item.name.startswith(ABOUT) for item in there)  # Processes make it at the same time.
        except (OSError, ValueError, RecursionError):
            before, is_other = None, True
        if is_other or not isinstance(before, dict | None):
            raise SettingsError(f"cache {folder} is a file, or has other things in it; give a new folder")
        if before is not None and (changed := [name for name in self.about if before.get(name) != self.about[name]]):
            was = ", ".join(f"{name} {before.get(name)}" for name in changed)
            raise SettingsError(f"cache {folder} was made with {was}; give the same, or another folder")

    def _begin(self) -> None:
        """Make the folder, before its first file."""
        file = self.folder / ABOUT
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".json.{os.getpid()}")
            aside.write_text(json.dumps(self.about) + "\n", encoding="utf-8")
            os.replace(aside, file)

    def words(self, n_rows: int, n_tokens: int) -> str:
        """Return how large it can get, for rows of at most n_tokens."""
        size = n_rows * (n_tokens - 1) * (self.k * BYTES + 4)
        return (
            f"the cache keeps {self.k} tokens of each prediction: at most {size / 1e9:.3g} GB for {n_rows:,} rows of "
            f"{n_tokens} tokens"
        )

    def read(self, rows: list[Row]) -> Said | None:
        """Return what was said of rows; None if one of them is missing, since rows of a batch are said together.

        Raises:
            CheckpointError: a file is damaged.
        """
        files = [self._file(row) for row in rows]
        if not all(file.is_file() for file in files):
            return None
        found = [self._load(file, row) for file, row in zip(files, rows, strict=True)]
        return [[each[name] for each in found] for name in NAMES]

    def _load(self, file: Path, row: Row) -> dict[str, Tensor]:
        try:
            found = load_file(file)
            n = int(row[1].sum())
            if any(len(found[name]) != n for name in NAMES):
                raise ValueError(f"it has not {n} predictions")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{file} of the cache is damaged; delete it, and the teacher is asked again"
            ) from error
        device = row[0].device
        return {
            name: value.long().to(device) if name == "tokens" else value.to(device) for name, value in found.items()
        }

    def write(self, rows: list[Row], said: Said) -> None:
        """Keep what was said of rows.

        Raises:
            CheckpointError: it cannot be written.
        """
        for index, row in enumerate(rows):
            file = self._file(row)
            if file.is_file():
                continue
            aside = file.with_suffix(f".{os.getpid()}")
            tokens, logprob, rest = (each[index].contiguous().cpu() for each in said)
            try:
                self._begin()
                file.parent.mkdir(exist_ok=True)
                save_file({"tokens": tokens.int(), "logprob": logprob, "rest": rest}, aside)
                os.replace(aside, file)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{file} cannot be written ({error}); make room, or leave the cache out"
                ) from error

    def _file(self, row: Row) -> Path:
        ids, where = (each.cpu() for each in row)
        n = len(ids)
        key = hashlib.blake2b(digest_size=16)
        for each in (ids.int(), where[:n].to(torch.uint8)):
            key.update(each.numpy().tobytes())
        name = key.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
