"""Figures of held-out text: each label counted once, compared row by row with the model before training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import has_length

from quietstar.learn import IGNORED, Labels
from quietstar.model import QuietStarOutput
from quietstar.reporting.interval import bootstrap_ratios
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.memory import out_of_memory_in
from quietstar.training.parts import Part
from quietstar.training.tally import Tally


class HeldOut:
    """Sums over each held-out row in one evaluation, and in the one before training.

    A row has four sums: base_nll and its labels, how much lower talk_nll_0 is, and its labels. Rows are in the order of
    the text on every process.

    Args:
        before: [rows, 4] of the evaluation before training; None if there was none.
    """

    def __init__(self, before: Tensor | None = None) -> None:
        self.before = before
        self._batches: list[Tensor] = []

    @torch.no_grad()
    def add(self, base_nll: Tensor, talk_nll: Tensor, labels: Labels, n_rows: int) -> None:
        """Add a batch of at most `n_rows` rows: base_nll [B, S], talk_nll [B, P, S, M], and their labels."""
        talks = labels.talk[..., 0]
        gain = (base_nll - talk_nll[..., 0].mean(1)) * talks
        sums = torch.stack([each.sum(1).double() for each in (base_nll * labels.base, labels.base, gain, talks)], dim=1)
        self._batches.append(torch.nn.functional.pad(sums, (0, 0, 0, n_rows - len(sums))))

    def rows(self, gather: Callable[[Tensor], Tensor] = lambda rows: rows[None]) -> Tensor:
        """Return [rows, 4] of all processes, to which batches went in turn, without rows that have no label.

        Args:
            gather: [n, 4] -> [processes, n, 4], which have as many rows each.
        """
        batches = torch.stack(self._batches)  # [batches, rows of one, 2]
        of_all = gather(batches.flatten(0, 1)).unflatten(1, batches.shape[:2])
        rows = of_all.transpose(0, 1).flatten(0, 2).cpu()
        return rows[rows[:, 1] > 0]

    def compare(self, rows: Tensor) -> dict[str, float]:
        """Compare an evaluation's rows [rows, 4] with those before training; return nothing if there were none.

        Returns:
            nll_before, of the base pass before training; drift, how much worse it is now (below 0: better); from two
            rows on drift_low and drift_high, the drift's 95 % interval over rows.
        """
        if self.before is None or len(self.before) != len(rows):
            return {}
        n_labels = rows[:, 1:2]
        figures = {"nll_before": float(self.before[:, 0].sum() / n_labels.sum())}
        drift = bootstrap_ratios(rows[:, :1] - self.before[:, :1], n_labels)[0]
        figures["drift"] = drift.value
        return figures | ({"drift_low": drift.low, "drift_high": drift.high} if len(rows) > 1 else {})


class HeldOutFigures(Part):
    """Adds up an evaluation, and keeps each held-out text's rows of the evaluation before training."""

    def __init__(self, processes: Processes, args: QuietStarTrainingArguments) -> None:
        self.processes, self.n_rows, self.thinks = processes, args.per_device_eval_batch_size, args.think_fraction > 0
        self.texts: dict[str, HeldOut] = {}

    @contextmanager
    def evaluating(self, name: str, text: Any, step: int) -> Iterator[None]:
        """Begin the evaluation of a held-out text after a step; what training samples next does not change.

        Args:
            name: prefix of its figures.
            text: the dataset.
            step: of training.

        Raises:
            OutOfMemoryError: a batch does not fit into memory.
        """
        self.tally, self.n_batches = Tally(), 0
        self.n_rows_in_all = len(text) if has_length(text) else None
        before = self.texts[name].before if name in self.texts else None
        self.current = self.texts[name] = HeldOut(before)
        where = f"in an evaluation after step {step}, with {self.n_rows} rows at once"
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with out_of_memory_in(f"{where}: lower --per_device_eval_batch_size"), torch.random.fork_rng(devices):
            yield

    def prepared(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's next batch, without the labels of repeated rows; a baseline thinks nowhere.

        Batches go to processes in turn, and all get as many: after the end of the text, rows are repeated.
        """
        labels = inputs["labels"]
        first = (self.n_batches * self.processes.n + self.processes.rank) * self.n_rows
        self.n_batches += 1
        if self.processes.n > 1 and self.n_rows_in_all is not None:
            is_repeated = first + torch.arange(len(labels), device=labels.device) >= self.n_rows_in_all
            labels = labels.masked_fill(is_repeated[:, None], IGNORED)
        return inputs | {"labels": labels} | ({} if self.thinks else {"think_at": torch.zeros_like(labels)})

    def add(self, output: QuietStarOutput, inputs: dict[str, Tensor]) -> None:
        """Add what forward returned for a batch."""
        labels = self.tally.add_batch(output, inputs)
        self.current.add(output.base_nll, output.talk_nll, labels, self.n_rows)

    def figures(self, base_loss_weight: float, *, is_first: bool) -> dict[str, float]:
        """Return means over all labels of this evaluation, compared with the model before training; {} without labels.

        Args:
            base_loss_weight: share of base_nll in nll.
            is_first: whether this is the evaluation before training.

        Returns:
            The figures of `Tally.figures` without policy_loss, since nothing is learned here: the loss is the nll. If
            there were thoughts, thought_gain_low and thought_gain_high, the 95 % interval of thought_gain over rows.
            The figures of `HeldOut.compare`, and gain: how much lower talk_nll_0 is than nll_before.
        """
        if not self.tally:
            return {}
        figures = self.tally.figures(base_loss_weight, self.processes.gather)
        figures.pop("policy_loss", None)
        figures["loss"] = figures["nll"]
        rows = self.current.rows(self.processes.gather)
        if is_first:
            self.current.before = rows
        if rows[:, 3].any() and len(rows) > 1:
            thought_gain = bootstrap_ratios(rows[:, 2:3], rows[:, 3:])[0]
            figures |= {"thought_gain_low": thought_gain.low, "thought_gain_high": thought_gain.high}
        if compared := self.current.compare(rows):
            figures |= compared | {"gain": figures.get("thought_gain", 0.0) - compared["drift"]}
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return each held-out text's rows of the evaluation before training."""
        return {name: text.before for name, text in self.texts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        self.texts = {name: HeldOut(before) for name, before in state.items()}
