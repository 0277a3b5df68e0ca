"""An earlier evaluation to compare with, item by item."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quietstar.base.untrusted import is_number
from quietstar.errors import CheckpointError, DataError
from quietstar.evaluation.tasks import Item
from quietstar.evaluation.voting import digest
from quietstar.text.files import read_lines

MODES = ("original", "base")
"""whose answers are compared with: those of a plain model, or of a thinking one without its thoughts"""


class Baseline:
    """The lines that an earlier evaluation wrote about each item.

    Args:
        folder: its output_dir.

    Raises:
        CheckpointError: it holds no evaluation.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "results.json").is_file():
            raise CheckpointError(f"baseline {folder} holds no results.json; give the output_dir of an evaluation")

    def values(self, items: list[Item], name: str, measure: str) -> Tensor:
        """[n] in float64: its values of n items.

        Args:
            items: in order.
            name: of the file, without its mode: gsm8k, or gsm8k-cot.
            measure: the key of the baseline's value in a line.

        Raises:
            CheckpointError: it has no such answers, or answers to other items.
        """
        lines = self._lines(name)
        theirs = []
        for item in items:
            line = lines.get(item.index)
            value: Any = None if line is None or line.get("item") != digest(item) else line.get(measure)
            if not (isinstance(value, bool) or is_number(value)):
                raise CheckpointError(
                    f"baseline {self.folder} has no answer to item {item.index + 1} of {name}, or to another one "
                    "there; evaluate it on the same data"
                )
            theirs.append(float(value))
        return torch.tensor(theirs, dtype=torch.float64)

    def _lines(self, name: str) -> dict[int, dict[str, Any]]:
        for mode in MODES:
            path = self.folder / f"{name}-{mode}.jsonl"
            if path.is_file():
                try:
                    return {line["index"]: line for line in map(json.loads, read_lines(path))}
                except (DataError, ValueError, KeyError, TypeError, RecursionError) as error:
                    raise CheckpointError(f"{path} holds no answers; evaluate the baseline again") from error
        raise CheckpointError(f"baseline {self.folder} has no answers to {name}; evaluate it on that, too")
