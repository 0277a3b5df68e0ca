"""Held-out text beside what the model predicted of it before training, row by row."""

from collections.abc import Callable

import torch
from torch import Tensor

from quietstar.reporting.interval import bootstrap_ratios


class HeldOut:
    """What the base pass made of each held-out row in one evaluation, and in the one before training.

    A row's figures are two sums: of base_nll, and of labels. Rows are in the order of the text on every process.

    Args:
        before: [rows, 2] of the evaluation before training; None where there was none.
    """

    def __init__(self, before: Tensor | None = None) -> None:
        self.before = before
        self._batches: list[Tensor] = []

    def begin(self) -> None:
        """Forget the rows of an earlier evaluation."""
        self._batches = []

    @torch.no_grad()
    def add(self, base_nll: Tensor, has_label: Tensor, n_rows: int) -> None:
        """Add a batch of at most `n_rows` rows: base_nll [B, S], and has_label [B, S] where it counts."""
        sums = torch.stack([(base_nll * has_label).sum(1), has_label.sum(1)], dim=1).double()
        self._batches.append(torch.nn.functional.pad(sums, (0, 0, 0, n_rows - len(sums))))

    def rows(self, gather: Callable[[Tensor], Tensor] = lambda rows: rows[None]) -> Tensor:
        """[rows, 2] of all processes, to which batches went in turn; rows without a label are left out.

        Args:
            gather: [n, 2] -> [processes, n, 2], which have as many rows each.
        """
        batches = torch.stack(self._batches)  # [batches, rows of one, 2]
        of_all = gather(batches.flatten(0, 1)).unflatten(1, batches.shape[:2])
        rows = of_all.transpose(0, 1).flatten(0, 2).cpu()
        return rows[rows[:, 1] > 0]

    def compare(self, rows: Tensor) -> dict[str, float]:
        """Figures of an evaluation's rows [rows, 2] beside those before training; none where there were none.

        Returns:
            nll_before, of the base pass before training; drift, how much worse it is now (below 0: better); from two
            rows on drift_low and drift_high, the drift's 95 % interval over rows.
        """
        if self.before is None or len(self.before) != len(rows):
            return {}
        n_labels = rows[:, 1:]
        figures = {"nll_before": float(self.before[:, 0].sum() / n_labels.sum())}
        drift = bootstrap_ratios(rows[:, :1] - self.before[:, :1], n_labels)[0]
        figures["drift"] = drift.value
        return figures | ({"drift_low": drift.low, "drift_high": drift.high} if len(rows) > 1 else {})
