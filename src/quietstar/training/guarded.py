"""A trainer whose optimizer sees no step that is not finite, and whose steps are made to fit into memory."""

import gc
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from quietstar.errors import BadStepsError, OutOfMemoryError, QuietStarError, SettingsError
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.bad_steps import BadSteps
from quietstar.training.sharded import ShardedTrainer

logger = logging.getLogger(__name__)

BAD_STEPS = "bad-steps"
"""folder of a run, with the batches of steps that the optimizer did not see"""


class GuardedTrainer(ShardedTrainer):
    """transformers' Trainer, with steps that are taken back where they are bad or do not fit into memory.

    Attributes:
        bad_steps: what was bad so far.
        rows_at_once: rows that fit into memory, where a batch has not; None as long as all have.
        stopped_by: why the run is to end after this step; None where it goes on.

    Raises:
        SettingsError: auto_micro_batch for several processes, which would no longer make the same passes.
    """

    args: QuietStarTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.auto_micro_batch and self.args.world_size > 1:
            raise SettingsError(
                f"auto_micro_batch was given for {self.args.world_size} processes, and one that halves its rows would "
                "leave the others waiting; leave it out, and lower --per_device_train_batch_size"
            )
        self.bad_steps = BadSteps(spikes=self.args.skip_spikes)
        self.rows_at_once: int | None = None
        self.stopped_by: QuietStarError | None = None
        self._forget_step()

    def _forget_step(self) -> None:
        self._batches: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._grad_norm: float | None = None
        self._before: dict[str, Any] = {}

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The batches of one optimizer step."""
        batches, counts = super().get_batch_samples(*args, **kwargs)
        self._forget_step()
        self._batches = batches
        self._before = {"tr_loss": self._tr_loss.clone(), "more": self.figures_so_far()}
        return batches, counts

    def any_of_all(self, here: bool) -> bool:
        """Whether it is so on any process; every process must ask."""
        if self.args.world_size == 1:
            return here
        flag = torch.tensor([float(here)], device=self.args.device)
        return bool(self.accelerator.gather(flag).any())

    def forget_run(self) -> None:
        """Know of nothing that was before."""
        self.bad_steps, self.rows_at_once = BadSteps(spikes=self.args.skip_spikes), None

    def figures_so_far(self) -> Any:
        """What a subclass has added up for its figures; `forget_figures` gets it where a step is taken back."""
        return None

    def forget_figures(self, before: Any) -> None:
        """Let figures be as they were."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward pass of a batch, in pieces where it has not fitted into memory.

        Raises:
            OutOfMemoryError: it does not fit, and may not be halved (auto_micro_batch), or is one row.
        """
        n_before = len(self._losses)
        try:
            self._losses.append(self._in_pieces(model, inputs, num_items_in_batch))
            return self._losses[-1]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            n_rows = min(len(inputs["input_ids"]), self.rows_at_once or len(inputs["input_ids"]))
            if not self.args.auto_micro_batch or n_rows == 1:
                raise OutOfMemoryError(self._too_large(inputs, n_rows)) from error
        # what the batches before have added to the gradient is made anew: a part of this one's is in it
        self.rows_at_once = (n_rows + 1) // 2
        logger.warning("out of memory with %d rows at once; going on with %d", n_rows, self.rows_at_once)
        model.zero_grad()
        self._take_back()
        gc.collect()
        clear_device_cache()
        for batch in self._batches[:n_before]:
            self._tr_loss += GuardedTrainer.training_step(self, model, batch, num_items_in_batch)
        return GuardedTrainer.training_step(self, model, inputs, num_items_in_batch)

    def _in_pieces(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        """A batch's loss; as losses are sums over what a whole step has, pieces of a batch add up to it."""
        n_rows = len(inputs["input_ids"])
        size = self.rows_at_once or n_rows
        if size >= n_rows:
            return super().training_step(model, inputs, counts)
        pieces = [{name: value[i : i + size] for name, value in inputs.items()} for i in range(0, n_rows, size)]
        return torch.stack([super(GuardedTrainer, self).training_step(model, piece, counts) for piece in pieces]).sum()

    def _too_large(self, inputs: dict[str, Any], n_rows: int) -> str:
        n_accumulated = self.args.gradient_accumulation_steps
        halves = "" if self.args.auto_micro_batch or n_rows == 1 else "; --auto_micro_batch halves the rows by itself"
        fewer = (
            f"lower --per_device_train_batch_size (--gradient_accumulation_steps {2 * n_accumulated} keeps the rows of "
            "a step), "
            if n_rows > 1
            else "lower "
        )
        return (
            f"out of memory at step {self.state.global_step + 1}, with {n_rows} rows of {inputs['input_ids'].shape[1]} "
            f"tokens at once: {fewer}--max_length or --think_fraction, or add --gradient_checkpointing or "
            f"--lora{halves}"
        )

    def _take_back(self) -> None:
        """Let what this step has added to losses and figures not have been."""
        self._losses.clear()
        self._tr_loss.copy_(self._before["tr_loss"])
        self.forget_figures(self._before["more"])

    def refuse_what_cannot_be_skipped(self, loss: Tensor) -> None:
        """Raise BadStepsError, on all processes, for a loss that is not finite where its backward pass takes the step.

        DeepSpeed's does.
        """
        if not self.is_deepspeed_enabled:
            return
        if self.any_of_all(not bool(torch.isfinite(loss.detach()))):
            raise BadStepsError(
                f"the loss is not finite at step {self.state.global_step + 1}, which DeepSpeed cannot skip; the "
                "optimizer has not seen it: go on with --resume, and a lower --learning_rate or --policy_weight"
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        found = super()._get_grad_norm(model, grad_norm)
        self._grad_norm = None if found is None else float(found)
        return found

    def judge_step(self) -> None:
        """Keep a step that is not finite, or a spike, from the optimizer, on every process."""
        loss = torch.stack([each.float() for each in self._losses]).sum() if self._losses else torch.zeros(())
        if self.args.world_size > 1:
            loss = self.accelerator.gather(loss.reshape(1).to(self.args.device)).mean()
        grad_norm = self._grad_norm
        if getattr(self.accelerator, "scaler", None) is not None and grad_norm is not None:
            grad_norm = grad_norm if math.isfinite(grad_norm) else None  # the scaler sees to it, and lowers its scale
        why = self.bad_steps.judge(float(loss), grad_norm)
        if why is None:
            return
        self.model_wrapped.zero_grad()
        self._keep_batches(why)
        self._take_back()
        if self.bad_steps.in_a_row >= self.args.max_bad_steps:
            self.stopped_by = BadStepsError(
                f"{why} at step {self.state.global_step + 1}, the last of {self.bad_steps.in_a_row} bad steps in a row "
                f"(max_bad_steps); the optimizer has seen none of them, and their batches are in "
                f"{Path(str(self.args.output_dir)) / BAD_STEPS}: lower --learning_rate or --policy_weight, or look "
                "at those texts"
            )

    def _keep_batches(self, why: str) -> None:
        step, rank = self.state.global_step + 1, self.args.process_index
        told = {"step": step, "rank": rank, "why": why, "grad_norm": self._grad_norm, "batches": []}
        for batch, loss in zip(self._batches, self._losses, strict=False):
            rows = {name: value.tolist() for name, value in batch.items() if isinstance(value, Tensor)}
            if self.processing_class is not None and "input_ids" in rows:
                rows["text"] = [self.processing_class.decode(row) for row in rows["input_ids"]]
            told["batches"].append({"loss": float(loss), **rows})
        folder = Path(str(self.args.output_dir)) / BAD_STEPS
        file = folder / f"step-{step:06}-rank-{rank}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(told) + "\n")
        except OSError as error:  # no reason to lose the run
            logger.warning("%s cannot be written: %s", file, error.strerror)
        if self.is_world_process_zero():
            logger.warning("step %d is skipped: %s; its batches are in %s", step, why, file)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)
