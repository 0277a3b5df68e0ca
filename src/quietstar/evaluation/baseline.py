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
"""modes to compare with, by preference: a plain model, or a thinking one without its thoughts"""


class Baseline:
    """The results per item of an earlier evaluation, from its output_dir.

    Raises:
        CheckpointError: the folder has no evaluation.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "results.json").is_file():
            raise CheckpointError(f"baseline {folder} has no results.json; give the output_dir of an evaluation")

    def values(self, items: list[Item], name: str, measure: str) -> Tensor:
        """Return the baseline's values of n items under the key `measure`: [n] in float64.

        `name` is that of the file without its mode: gsm8k, or gsm8k-cot.

        Raises:
            CheckpointError: the baseline lacks an item, or has other items.
        """
        lines = self._lines(name)
        values = []
        for item in items:
            line = lines.get(item.index)
            value: Any = None if line is None or line.get("item") != digest(item) else line.get(measure)
            if not (isinstance(value, bool) or is_number(value)):
                raise CheckpointError(
                    f"baseline {self.folder} has no answer to item {item.index + 1} of {name}, or one to a different "
                    "item; evaluate it on the same data"
                )
            values.append(float(value))
        return torch.tensor(values, dtype=torch.float64)

    def _lines(self, name: str) -> dict[int, dict[str, Any]]:
        for mode in MODES:
            path = self.folder / f"{name}-{mode}.jsonl"
            if path.is_file():
                try:
                    return {line["index"]: line for line in map(json.loads, read_lines(path))}
                except (DataError, ValueError, KeyError, TypeError, RecursionError) as error:
                    raise CheckpointError(f"{path} is damaged; evaluate the baseline again") from error
        raise CheckpointError(f"baseline {self.folder} has no answers to {name}; evaluate it on that task, too")
