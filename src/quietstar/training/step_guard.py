"""The step guard: it keeps bad steps from the optimizer, and runs a batch in pieces if memory is short."""

import gc
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.errors import BadStepsError, OutOfMemoryError, SettingsError
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.bad_steps import BadSteps
from quietstar.training.memory import Batch, is_out_of_memory
from quietstar.training.parts import Part

logger = logging.getLogger(__name__)

BAD_STEPS = "bad-steps"
"""folder of a run, with the batches of skipped steps"""


class StepGuard(Part):
    """Judges each step before the optimizer sees it, and runs a batch in pieces if it does not fit into memory.

    Attributes:
        bad_steps: the bad steps so far.
        rows_at_once: rows that fit into memory, if a whole batch did not; None as long as all batches fit.
        batches: of the current step.
        losses: [] each, of those of its batches that were run.
        grad_norm: of the step, before clipping.

    Raises:
        SettingsError: auto_micro_batch for several processes, which would no longer make the same passes.
    """

    def __init__(
        self, args: QuietStarTrainingArguments, processes: Processes, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        if args.auto_micro_batch and processes.n > 1:
            raise SettingsError(
                f"auto_micro_batch was given for {processes.n} processes, and one that halves its rows would "
                "leave the others waiting; leave it out, and lower --per_device_train_batch_size"
            )
        self.args, self.processes, self.tokenizer = args, processes, tokenizer
        self.bad_steps = BadSteps(spikes=args.skip_spikes)
        self.rows_at_once: int | None = None
        self.begin([], 1)

    def begin(self, batches: list[Batch], step: int) -> None:
        """Begin a step, numbered from 1, with its batches."""
        self.batches, self.step = batches, step
        self.losses: list[Tensor] = []
        self.grad_norm: Tensor | float | None = None

    def run_batch(
        self, batch: Batch, forward_backward: Callable[[Batch], Tensor], discard_step: Callable[[], None]
    ) -> Tensor:
        """Return the loss [] of a batch after its backward pass, in pieces if it does not fit into memory.

        Args:
            batch: the next one of the step.
            forward_backward: returns the loss of a batch, or of some of its rows, after its backward pass. A loss is a
                share of the whole step's, so the losses of pieces add up to the batch's.
            discard_step: clears the gradients and the figures of this step.

        Raises:
            OutOfMemoryError: it does not fit, and may not be halved (auto_micro_batch), or is one row.
        """
        n_before, n_rows = len(self.losses), len(batch["input_ids"])
        try:
            self.losses.append(self._in_pieces(batch, forward_backward))
            return self.losses[-1]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            n_rows = min(n_rows, self.rows_at_once or n_rows)
            if not self.args.auto_micro_batch or n_rows == 1:
                raise OutOfMemoryError(self._too_large(batch, n_rows)) from error
        self.rows_at_once = (n_rows + 1) // 2
        logger.warning("out of memory with %d rows at once; continuing with %d", n_rows, self.rows_at_once)
        # The gradients may hold a part of this batch's, so the batches before it are run again, too.
        discard_step()
        self.losses.clear()
        gc.collect()
        clear_device_cache()
        for each in [*self.batches[:n_before], batch]:
            self.run_batch(each, forward_backward, discard_step)
        return self.losses[-1]

    def _in_pieces(self, batch: Batch, forward_backward: Callable[[Batch], Tensor]) -> Tensor:
        n_rows = len(batch["input_ids"])
        size = self.rows_at_once or n_rows
        if size >= n_rows:
            return forward_backward(batch)
        pieces = [
            {name: value if isinstance(value, int) else value[i : i + size] for name, value in batch.items()}
            for i in range(0, n_rows, size)
        ]
        return torch.stack([forward_backward(piece) for piece in pieces]).sum()

    def _too_large(self, batch: Batch, n_rows: int) -> str:
        n_accumulated = self.args.gradient_accumulation_steps
        halves = "" if self.args.auto_micro_batch or n_rows == 1 else "; --auto_micro_batch halves the rows by itself"
        fewer = (
            f"lower --per_device_train_batch_size (--gradient_accumulation_steps {2 * n_accumulated} keeps the rows of "
            "a step), "
            if n_rows > 1
            else "lower "
        )
        return (
            f"out of memory at step {self.step}, with {n_rows} rows of {batch['input_ids'].shape[1]} "
            f"tokens at once: {fewer}--max_length or --think_fraction, or add --gradient_checkpointing or "
            f"--lora{halves}"
        )

    def refuse_loss(self, loss: Tensor) -> None:
        """Raise BadStepsError on all processes if a loss [] is not finite: DeepSpeed steps in its backward pass."""
        if self.processes.any(not bool(torch.isfinite(loss.detach()))):
            raise BadStepsError(
                f"the loss is not finite at step {self.step}, which DeepSpeed cannot skip; the optimizer has not seen "
                "it: continue with --resume, and a lower --learning_rate or --policy_weight"
            )

    def why_bad(self, *, is_scaled: bool) -> str | None:
        """Return why this step is bad, the same on all processes; None if it is good.

        The batches of a bad step are written to the folder of the run.

        Args:
            is_scaled: whether fp16's loss scaler handles gradients that are not finite, by lowering its scale.
        """
        loss = torch.stack([each.float() for each in self.losses]).sum() if self.losses else torch.zeros(())
        grad_norm = None if self.grad_norm is None else float(self.grad_norm)
        is_known = grad_norm is not None and (not is_scaled or math.isfinite(grad_norm))
        why = self.bad_steps.judge(float(self.processes.gather(loss).mean()), grad_norm if is_known else None)
        if why is not None:
            self._keep_batches(why, grad_norm)
        return why

    def too_many(self, why: str) -> BadStepsError | None:
        """Return the error that ends the run after this bad step; None if fewer than max_bad_steps came in a row."""
        if self.bad_steps.in_a_row < self.args.max_bad_steps:
            return None
        return BadStepsError(
            f"{why} at step {self.step}, the last of {self.bad_steps.in_a_row} bad steps in a row (max_bad_steps); the "
            f"optimizer has seen none of them, and their batches are in {self._folder}: lower --learning_rate or "
            "--policy_weight, or look at those texts"
        )

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir)) / BAD_STEPS

    def _keep_batches(self, why: str, grad_norm: float | None) -> None:
        rank = self.processes.rank
        record: dict[str, Any] = {"step": self.step, "rank": rank, "why": why, "grad_norm": grad_norm, "batches": []}
        for batch, loss in zip(self.batches, self.losses, strict=False):
            rows = {name: value.tolist() for name, value in batch.items() if isinstance(value, Tensor)}
            if self.tokenizer is not None and "input_ids" in rows:
                rows["text"] = [self.tokenizer.decode(row) for row in rows["input_ids"]]
            record["batches"].append({"loss": float(loss), **rows})
        file = self._folder / f"step-{self.step:06}-rank-{rank}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record) + "\n", encoding="utf-8")
        except OSError as error:  # The run is worth more than this file.
            logger.warning("%s cannot be written: %s", file, error.strerror)
        if self.processes.is_first:
            logger.warning("step %d is skipped: %s; its batches are in %s", self.step, why, file)

    def state_dict(self) -> dict[str, Any]:
        """Return the bad steps so far, and the rows that fit into memory."""
        return {**self.bad_steps.state_dict(), "rows_at_once": self.rows_at_once}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        self.rows_at_once = state["rows_at_once"]
        self.bad_steps.load_state_dict(state)
