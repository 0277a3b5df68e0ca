"""QuietStarTrainer: the one place where this package meets transformers' Trainer.

Every override stands here, a few lines each, and delegates to parts that know nothing of the Trainer. One step:

    get_batch_samples     read its batches, sample where and how long to think, count the labels on all ranks
    training_step         for each batch: StepGuard.run_batch -> compute_loss -> the model's forward, then backward
    _clip_grad_norm       clip the gradients; _get_grad_norm notes their norm before clipping
    callbacks.RunEvents   keep a bad step from the optimizer (StepGuard, discard_step)
    (transformers)        optimizer.step, the learning rate's step, zero_grad
    callbacks.RunEvents   decide what is due (Schedule): log, evaluation_loop, _save_checkpoint

Private names of the Trainer are used in this file only, and tests/training/test_seam.py lists them.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput

from quietstar.base.loading import load_tokenizer
from quietstar.model import QuietStarForCausalLM
from quietstar.runs.processes import Processes
from quietstar.training import callbacks, card, checkpoints, optimizer, publish, refusals, resuming, weights
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.checkpointer import Checkpointer
from quietstar.training.data.datasets import TextCollator, pad_token_id
from quietstar.training.memory import Batch, out_of_memory_in
from quietstar.training.model import thinking_model, warn_of_lost_updates
from quietstar.training.repeated_steps import repeated_steps
from quietstar.training.run_parts import RunParts
from quietstar.training.same_run import contents_of, what_matters


class QuietStarTrainer(Trainer):
    """Teaches a model to think from plain text (arXiv 2403.09629).

    Losses are means over the labels of a whole optimizer step, across accumulated batches and ranks.

    Args:
        model: a QuietStarForCausalLM; or a name or folder of one, or of a base model to give thoughts to; or a
            base model itself. Given by name, the weights that train are loaded in float32.
        args: the settings of the method in it are written into the model's config.
        processing_class: the tokenizer; None loads the one saved with a model given by name.
        data_collator: None pads on the right.
        kwargs: as transformers' Trainer takes them. Batches may also have `think_at` [B, S], `thoughts` [B, P, S, K].

    Attributes:
        parts: what the run keeps, by name; a checkpoint holds their states under these names.
        settings: what the arguments do not have, such as a digest of the rows; a resumed run must have the same.
        resumed: the checkpoint that it resumes from; None if it does not.
        tracked: its runs in the trackers that it reports to.
    """

    args: QuietStarTrainingArguments
    model: QuietStarForCausalLM

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        args: QuietStarTrainingArguments | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        args = args or QuietStarTrainingArguments(output_dir="runs/quietstar")
        refusals.check_supported(args, kwargs)
        if processing_class is None and isinstance(model, (str, Path)):
            processing_class = load_tokenizer(model)
        model = thinking_model(model, args, processing_class)
        callbacks.settle_evaluation(args, processing_class, kwargs.get("eval_dataset"))
        collator = data_collator or TextCollator(pad_token_id(processing_class) if processing_class else 0)
        super().__init__(model, args, collator, processing_class=processing_class, **kwargs)
        if self.is_fsdp_enabled:
            weights.refuse_recomputing(self.accelerator.state.fsdp_plugin)
        self.sharded = "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else None
        self.model_accepts_loss_kwargs = True  # Its losses are shares of the step's: transformers must not divide them.
        self.processes = Processes(args.process_index, args.world_size, args.device)
        self.parts = RunParts(args, self.processes, processing_class)
        self.settings: dict[str, Any] = contents_of(kwargs.get("train_dataset"))
        self.folder = Path(str(args.output_dir))
        self.tracked = callbacks.add_callbacks(self)
        if self.processes.is_first and not (self.sharded == "DeepSpeed" or (self.sharded and (args.bf16 or args.fp16))):
            warn_of_lost_updates(self.model)  # Those two keep float32 copies.

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or resume from a checkpoint: its folder, or True for the latest one (`resume`: if there is one).

        Raises:
            CheckpointError, SettingsError: it cannot resume; a checkpoint cannot be written.
            BadStepsError, InterruptedRunError, OutOfMemoryError: it has ended early.
        """
        limit, evaluates_first = self.args.save_total_limit, self.args.eval_on_start
        self.resumed = checkpoints.to_resume(self.folder, resume_from_checkpoint, self.args)
        if self.resumed is not None:
            self.check_resumable(self.resumed)
        self.parts.reset()
        self.checkpointer = Checkpointer(self.folder, self.processes, publishes=self.args.should_save, n_kept=limit)
        # With a limit, transformers would delete the latest checkpoint at the end of a run, and keep the best alone.
        self.args.save_total_limit, self.args.eval_on_start = None, evaluates_first and self.resumed is None
        try:
            with out_of_memory_in("outside the passes over a batch, in the optimizer: add --lora or --optim adafactor"):
                result = super().train(str(self.resumed) if self.resumed else None, *args, **kwargs)
        finally:
            self.args.save_total_limit, self.args.eval_on_start = limit, evaluates_first
        if self.parts.schedule.stopped_by is not None:
            raise self.parts.schedule.stopped_by
        return result._replace(training_loss=result.metrics.get("train_loss", math.nan))

    def check_resumable(self, checkpoint: Path) -> None:
        """Raise an error if this run cannot resume from a checkpoint; see `resuming.check_resumable`."""
        resuming.check_resumable(checkpoint, self.folder, self._marker(), allow_changes=self.args.allow_changes)

    def _marker(self) -> dict[str, Any]:
        """Return what a checkpoint's marker says of this run."""
        info = {"sharded": self.sharded, "resumable": not self.args.save_only_model, "trackers": self.tracked.current()}
        return info | {"settings": what_matters(self.args, self.model.config, self.settings, self.train_dataset)}

    def begin(self) -> None:
        """Begin or resume a run, before its first step."""
        self.parts.begin(self.model)
        if self.resumed is None:
            return
        self._update_best_path()  # The folder of the run may have been moved.
        self.checkpointer.delete_old(self.resumed, self.state.best_model_checkpoint)
        self.state.compute_steps(self.args, self.state.max_steps)  # How often it saves and logs may have changed.
        with resuming.resuming_from(self.resumed):
            self.parts.load_state_dict(resuming.load_states(self.resumed, self.processes))
        if self.parts.schedule.evaluation_is_due and self._determine_best_metric(self._evaluate(None, None), None):
            self._update_best_path()
        self.parts.schedule.evaluation_is_due = False

    def _update_best_path(self) -> None:
        """Set the best checkpoint's path from its step; None if it is gone."""
        if best := self.state.best_global_step:
            self.state.best_model_checkpoint = self.checkpointer.path_of_best(best, self.state.global_step)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Without this, transformers takes one more step in a run that has made all its steps.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Return this process's DataLoader; a stream has its own, since transformers would split it once more."""
        loader = self.parts.place.open(self.train_dataset, self.args, self.data_collator, self.processes)
        return super().get_train_dataloader() if loader is None else loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        repeated = repeated_steps(self.args, self.train_dataset, self.get_total_train_batch_size(self.args))
        return super()._get_train_sampler(train_dataset) if repeated is None else repeated

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any) -> tuple[list, Any]:
        """Return the batches and their label Counts; transformers passes these on as num_items_in_batch."""
        # A stream continues at its place; the Trainer's iterator would read it from the beginning.
        batches = list(islice(self.parts.place.batches or epoch_iterator, num_batches))
        with self.compute_loss_context_manager():
            return batches, self.parts.begin_step(batches, self.state.global_step, self.model, self.model_wrapped)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss of a batch after its backward pass; see `StepGuard.run_batch`."""
        run, run_batch = super().training_step, self.parts.guard.run_batch
        with self.parts.figures.timed():
            return run_batch(inputs, lambda rows: run(model, rows, num_items_in_batch), self.discard_step)

    def discard_step(self) -> None:
        """Clear the gradients of the current step, and roll back what its batches added to the figures."""
        self.model_wrapped.zero_grad()
        self.parts.rollback_step()

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch, as its share of the mean over the whole optimizer step."""
        output = model(**inputs, counts=num_items_in_batch, loss_only=True, use_cache=False)
        loss = output.loss
        if model.training:
            if self.is_deepspeed_enabled:
                self.parts.guard.refuse_loss(loss)
            self.parts.figures.tally.add_batch(output, inputs)
            self.parts.rollouts.add(output, inputs)
            if num_items_in_batch is not None:
                loss = loss * self.processes.n  # Gradients are averaged over ranks, and counts span them already.
        return (loss, output) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return transformers' optimizer; mixing head and thought embeddings learn at head_learning_rate, if given."""
        if self.optimizer is None:
            added = optimizer.added_parameters(self.accelerator.unwrap_model(model or self.model))
            with refusals.installed(self.args.optim):
                optimizer.give_own_rate(super().create_optimizer(model), added, self.args.head_learning_rate)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # DeepSpeed clips by itself, and fp16's loss scale can be divided out only once: both clip all gradients as one.
        is_apart = self.args.clip_heads_apart and not self.is_deepspeed_enabled and not self.args.fp16
        added = optimizer.added_parameters(self.accelerator.unwrap_model(model)) if is_apart else []
        norm = optimizer.clip_apart(model, added, self.accelerator.clip_grad_norm_, self.args.max_grad_norm)
        return super()._clip_grad_norm(model) if norm is None else norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self.parts.guard.grad_norm = norm = super()._get_grad_norm(model, grad_norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line of figures, completed by the method's; means leave bad steps out."""
        if "loss" in logs:
            self.parts.figures.complete(logs, self.model.config.base_loss_weight, self.parts.guard.bad_steps.count)
        if "train_loss" in logs:
            self.parts.figures.summarize(logs, self.state.global_step, self.get_total_train_batch_size(self.args))
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate: means over all labels of the held-out text, each counted once over all processes."""
        name = kwargs.get("metric_key_prefix", "eval")
        step, weight = self.state.global_step, self.model.config.base_loss_weight
        with self.parts.held_out.evaluating(name, dataloader.dataset, step):
            output = super().evaluation_loop(dataloader, *args, **kwargs)
            figures = self.parts.held_out.figures(weight, is_first=self.is_in_train and step == 0)
            with self.compute_loss_context_manager():
                figures |= self.parts.tasks.figures(self.accelerator.unwrap_model(self.model), self.processes)
        output.metrics.update({f"{name}_{figure}": value for figure, value in figures.items()})
        return output

    def prediction_step(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> tuple[Tensor, None, None]:
        """Return the nll [] of a batch of held-out text."""
        inputs = self.parts.held_out.prepared(send_to_device(inputs, self.args.device))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        self.parts.held_out.add(output, inputs)
        return loss.detach(), None, None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, gathered if it is sharded, its tokenizer and its card."""
        folder = Path(output_dir or self.folder)
        if self.is_fsdp_enabled:
            state = self.accelerator.get_state_dict(self.model)
            if self.args.should_save:
                weights.save_pretrained(self.model, self.processing_class, folder, state_dict=state)
        else:
            super().save_model(str(folder), _internal_call=True)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which could run code; run.json has them
        self.create_model_card(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._update_best_path()
        self.store_flos()
        step, best = self.state.global_step, self.state.best_model_checkpoint
        checkpoint = self.checkpointer.write(step, self._write_files, self._marker(), best)
        if checkpoint is not None and self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))

    def _write_files(self, folder: Path) -> None:
        """Write this process's files of a checkpoint."""
        saves, sharded = self.args.should_save, self.is_fsdp_enabled
        if self.is_deepspeed_enabled:
            self.save_model(str(folder), _internal_call=True)
        else:
            weights.save_model(self.model, self.processing_class, folder, sharded=sharded, is_first=saves)
        if not self.args.save_only_model:
            for save in (self._save_optimizer_and_scheduler, self._save_scaler, self._save_rng_state):
                save(str(folder))
        if saves:
            resuming.save_trainer_state(self.state, [*self.callback_handler.callbacks, self.control], folder)
        resuming.save_states(self.parts.state_dict(), folder, self.processes)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            weights.save_optimizer_shards(self.model, self.optimizer, self.lr_scheduler, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with resuming.resuming_from(resume_from_checkpoint):
            weights.load_model(model or self.model, Path(resume_from_checkpoint), sharded=self.is_fsdp_enabled)

    def _load_best_model(self) -> None:
        with resuming.resuming_from(best := str(self.state.best_model_checkpoint)):
            super()._load_best_model() if self.is_deepspeed_enabled else self._load_from_checkpoint(best)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        keeps = self.args.allow_changes and not self.is_deepspeed_enabled
        with resuming.resuming_from(checkpoint), optimizer.settings_kept(self.optimizer, self.lr_scheduler, keeps):
            if checkpoint is None or self.is_deepspeed_enabled:
                super()._load_optimizer_and_scheduler(checkpoint)
            else:
                weights.load_optimizer(self.model, self.optimizer, self.lr_scheduler, checkpoint)

    create_model_card = card.write_card_of
    init_hf_repo, push_to_hub = publish.in_one_line(Trainer)
    _load_scaler, _load_rng_state = map(resuming.in_one_line, (Trainer._load_scaler, Trainer._load_rng_state))
