"""QuietStarTrainer: transformers' Trainer for a model that thinks."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, has_length

from quietstar.base.loading import load_tokenizer
from quietstar.errors import SettingsError
from quietstar.learn import IGNORED, Counts, Labels
from quietstar.model import QuietStarForCausalLM, QuietStarOutput
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.callbacks import FollowEpoch, ProgressLines, ShowThoughts, WatchHealth
from quietstar.training.data.datasets import TextCollator, pad_token_id
from quietstar.training.health import HealthChecks
from quietstar.training.held_out import HeldOut
from quietstar.training.masters import warn_of_lost_updates
from quietstar.training.model import thinking_model
from quietstar.training.optimizer import give_own_rate, parts_made_new
from quietstar.training.positions import draw_positions
from quietstar.training.reports import WriteReports
from quietstar.training.streaming import StreamingTrainer
from quietstar.training.tally import Tally, labels_of
from quietstar.training.tasks import TaskFigures


class QuietStarTrainer(StreamingTrainer):
    """Teaches a model to think from plain text (arXiv 2403.09629).

    Losses are means over the labels of a whole optimizer step, across accumulated batches and ranks. Evaluation
    reports the nll with and without thoughts on held-out text, thoughts greedy, one each.

    Args:
        model: a QuietStarForCausalLM; or a name or folder of one, or of a base model to give thoughts to; or a
            base model itself. Given by name, the weights that train are loaded in float32; a model is taken as it is.
        args: the settings of the method in it are written into the model's config.
        processing_class: the tokenizer; None loads the one that lies with a model given by name.
        data_collator: None pads on the right.
        kwargs: as transformers' Trainer takes them. Datasets give items with `input_ids`; a collator may also
            give `think_at` [B, S] and `thoughts` [B, P, S, K].

    Raises:
        SettingsError: settings that do not fit each other.
        BadStepsError, InterruptedRunError, OutOfMemoryError: in training, what they say.
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
        if processing_class is None and isinstance(model, (str, Path)):
            processing_class = load_tokenizer(model)
        model = thinking_model(model, args, processing_class)
        check_evaluation(args, processing_class, kwargs.get("eval_dataset"))
        self.tasks = None
        if args.eval_tasks and processing_class is not None:
            self.tasks = TaskFigures(args.eval_tasks, args.eval_data, args.eval_limit, processing_class)
        if kwargs.get("eval_dataset") is None:
            args.eval_strategy, args.eval_on_start = type(args.eval_strategy)("no"), False
        self._tally, self._eval_tally = Tally(), Tally()
        self._held_out: dict[str, HeldOut] = {}
        self.health = HealthChecks()
        self._seconds = 0.0
        self._eval_batch = 0
        self._n_eval_rows: int | None = None
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=data_collator or TextCollator(pad_token_id(processing_class) if processing_class else 0),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # its losses are shares of the step's already: not divided again
        self.add_callback(FollowEpoch(self.train_dataset))
        self.add_callback(WatchHealth(self.health))
        if self.pop_callback(ProgressCallback):
            self.add_callback(ProgressLines())
        if args.thoughts_shown and kwargs.get("eval_dataset") is not None and processing_class is not None:
            self.add_callback(ShowThoughts(self.eval_dataset, self.data_collator, args.thoughts_shown))
        if args.eval_report_rows and processing_class is not None:
            self.add_callback(WriteReports(self.eval_dataset, args.eval_report_rows, processing_class))
        has_copies = self.is_deepspeed_enabled or (self.is_fsdp_enabled and (args.bf16 or args.fp16))  # in float32
        if not has_copies and self.is_world_process_zero():
            warn_of_lost_updates(self.model)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Counts | None]:
        """The batches of one optimizer step, and how many labels they have in all, on all ranks together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        if self.args.think_fraction < 1:
            for index, batch in enumerate(batches):
                if "think_at" not in batch:
                    generator = torch.Generator().manual_seed(self._seed_of(index))
                    batch["think_at"] = draw_positions(batch["labels"], self.args.think_fraction, generator)
        M = self.model.config.n_ahead_talk
        counts = labels_of(batches[0], M).count()
        for batch in batches[1:]:
            counts = counts + labels_of(batch, M).count()
        return batches, self._of_all_ranks(counts, device)

    def _seed_of(self, batch: int) -> int:
        """Another one for each step, batch and rank, and the same ones in a run that is repeated or resumed."""
        numbers = (self.args.seed, self.state.global_step, batch, self.args.process_index)
        return hash(numbers) % 2**63

    def _of_all_ranks(self, counts: Counts, device: torch.device) -> Counts:
        flat = torch.cat([counts.base[None], counts.policy[None], counts.talk]).to(device)
        if self.args.world_size > 1:
            flat = self.accelerator.gather(flat).reshape(self.args.world_size, -1).sum(0)
        return Counts(base=flat[0], policy=flat[1], talk=flat[2:])

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of a batch, timed: evaluation and saving do not count in tokens a second."""
        begin = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self._seconds += time.perf_counter() - begin
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
    ) -> Tensor | tuple[Tensor, QuietStarOutput]:
        """The loss of a batch, as its share of the mean over the whole optimizer step."""
        output = model(**inputs, counts=num_items_in_batch, loss_only=True, use_cache=False)
        loss = output.loss
        if not model.training:
            return (loss, output) if return_outputs else loss
        self.refuse_what_cannot_be_skipped(loss)
        self._add(self._tally, output, inputs)
        if num_items_in_batch is not None:
            loss = loss * self.args.world_size  # gradients are averaged over ranks, and counts already span them
        return (loss, output) if return_outputs else loss

    def forget_run(self) -> None:
        """Know of nothing that was before."""
        super().forget_run()
        self._tally, self._seconds, self._held_out = Tally(), 0.0, {}
        self.health.restore(HealthChecks().state())

    def figures_so_far(self) -> dict[str, Tensor]:
        """The sums of the line that is under way."""
        return dict(self._tally.sums)

    def forget_figures(self, before: dict[str, Tensor]) -> None:
        """Go back to such sums."""
        self._tally.sums = dict(before)

    def progress(self) -> dict[str, Any]:
        """The sums and the time of the line that is under way."""
        sums = {name: value.cpu() for name, value in self._tally.sums.items()}
        before = {name: held_out.before for name, held_out in self._held_out.items()}
        return super().progress() | {
            "sums": sums,
            "seconds": self._seconds,
            "before": before,
            "health": self.health.state(),
        }

    def restore_progress(self, progress: dict[str, Any]) -> None:
        """Go on with such a line."""
        super().restore_progress(progress)
        self._tally.sums = {name: value.to(self.args.device) for name, value in progress["sums"].items()}
        self._seconds = progress["seconds"]
        self._held_out = {name: HeldOut(before) for name, before in progress.get("before", {}).items()}
        self.health.restore(progress.get("health", {}))

    def _add(self, tally: Tally, output: QuietStarOutput, inputs: dict[str, Tensor]) -> Labels:
        labels = labels_of(inputs, output.talk_nll.shape[-1])
        mask = inputs.get("attention_mask")
        tokens = torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
        tally.add(output, labels, tokens)
        return labels

    def _of_each_process(self, values: Tensor) -> Tensor:
        """[...] -> [processes, ...]; every process must call it."""
        ranks = self.args.world_size
        return values[None] if ranks == 1 else self.accelerator.gather(values).reshape(ranks, *values.shape)

    def _figures(self, tally: Tally) -> dict[str, float]:
        return tally.figures(self.model.config.base_loss_weight, self._of_each_process)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the method's figures, and tokens a second, to a line of training figures."""
        if "loss" in logs and self._tally:
            logs |= self._figures(self._tally)
            logs["tokens_per_second"] = self._tally.n_tokens * self.args.world_size / self._seconds
            self._tally, self._seconds = Tally(), 0.0
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The nll of a batch of held-out text."""
        inputs = self._prepare_inputs(inputs)
        inputs["labels"] = self._counted_once(inputs["labels"])
        if self.args.think_fraction == 0:  # a baseline without thoughts
            inputs["think_at"] = torch.zeros_like(inputs["input_ids"])
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        labels = self._add(self._eval_tally, output, inputs)
        self._rows.add(output.base_nll, labels.base, self.args.per_device_eval_batch_size)
        return loss.detach(), None, None

    def _counted_once(self, labels: Tensor) -> Tensor:
        """Labels [B, S] without those of rows that only fill up the batches of the last processes.

        Batches go to processes in turn, and all have as many: past the end of the text, rows come once more.
        """
        ranks, n_rows = self.args.world_size, self._n_eval_rows
        if ranks == 1 or n_rows is None:
            return labels
        size = self.args.per_device_eval_batch_size
        row = (self._eval_batch * ranks + self.args.process_index) * size + torch.arange(len(labels))
        self._eval_batch += 1
        return labels.masked_fill((row >= n_rows)[:, None].to(labels.device), IGNORED)

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate, and report means over all labels of the held-out text, each counted once over all processes."""
        self._eval_tally, self._eval_batch = Tally(), 0
        self._rows = self._held_out.setdefault(metric_key_prefix, HeldOut())
        self._rows.begin()
        self._n_eval_rows = len(dataloader.dataset) if has_length(dataloader.dataset) else None
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):  # evaluation must not change what training samples next
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._eval_tally:
            figures = self._figures(self._eval_tally)
            figures.pop("policy_loss", None)  # nothing is learned here
            figures |= self._beside_before(figures)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in figures.items()})
            output.metrics[f"{metric_key_prefix}_loss"] = figures["nll"]
        if self.tasks is not None:
            output.metrics.update(self._task_figures(self.tasks, metric_key_prefix))
        return output

    def _beside_before(self, figures: dict[str, float]) -> dict[str, float]:
        """Held-out figures beside those of the model before training, where it was evaluated then."""
        rows = self._rows.rows(self._of_each_process)
        if self.is_in_train and self.state.global_step == 0:
            self._rows.before = rows
        found = self._rows.compare(rows)
        if found:
            found["gain"] = figures.get("thought_gain", 0.0) - found["drift"]
        return found

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As transformers' Trainer; mixing head and thought embeddings learn at head_learning_rate, where given."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            model: QuietStarForCausalLM = self.accelerator.unwrap_model(args[0] if args else self.model)
            give_own_rate(optimizer, parts_made_new(model), self.args.head_learning_rate)
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip gradients, and return their norm before; see clip_heads_apart.

        DeepSpeed clips by itself, and a loss scale can be taken out of gradients once: both clip all as one.
        """
        new = {id(parameter) for parameter in parts_made_new(self.accelerator.unwrap_model(model))}
        learning = [parameter for parameter in model.parameters() if parameter.grad is not None]
        parts = [[each for each in learning if (id(each) in new) == is_new] for is_new in (False, True)]
        as_one = not self.args.clip_heads_apart or self.is_deepspeed_enabled or self.args.fp16
        if as_one or not all(parts):  # of no gradients torch makes a norm on the CPU, wherever the model is
            return super()._clip_grad_norm(model)
        norms = [self.accelerator.clip_grad_norm_(part, self.args.max_grad_norm) for part in parts]
        return torch.stack([getattr(norm, "full_tensor", lambda norm=norm: norm)() for norm in norms]).norm()

    def _task_figures(self, tasks: TaskFigures, prefix: str) -> dict[str, float]:
        model: QuietStarForCausalLM = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        try:
            with self.compute_loss_context_manager():
                return tasks.of(
                    model,
                    self.args.per_device_eval_batch_size,
                    thinks=self.args.think_fraction > 0,
                    prefix=prefix,
                    processes=Processes(self.args.process_index, self.args.world_size),
                )
        finally:
            model.train(was_training)


def check_evaluation(
    args: QuietStarTrainingArguments, tokenizer: PreTrainedTokenizerBase | None, eval_dataset: Any
) -> None:
    """Raise SettingsError where something is asked for at every evaluation, and there is nothing to make it with."""
    for name in ("eval_tasks", "eval_report_rows"):
        if getattr(args, name) and eval_dataset is None:
            raise SettingsError(f"{name} was given for every evaluation, and no text is held out; give an eval_size")
        if getattr(args, name) and tokenizer is None:
            raise SettingsError(f"{name} was given, which needs a tokenizer; give processing_class")
