"""A trainer whose checkpoints are whole or absent, on every process, whatever happens while they are written."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from quietstar.errors import CheckpointError, first_line
from quietstar.training import checkpoints
from quietstar.training.guarded import GuardedTrainer


class SavingTrainer(GuardedTrainer):
    """transformers' Trainer, with checkpoints written aside; see `quietstar.training.checkpoints`."""

    def about_checkpoint(self) -> dict[str, Any]:
        """What the marker of a checkpoint says of it."""
        return {"step": self.state.global_step}

    def save_progress(self, written: Path) -> None:
        """Write what this process must know to go on, into a checkpoint that is being written."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.aside) if self.aside is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        checkpoint, aside = run / checkpoints.name_of(self.state.global_step), run / checkpoints.ASIDE
        written = aside / checkpoint.name
        if self.any_of_all(checkpoints.is_whole(checkpoint)):
            return  # at the end of an epoch, say, whose last step has written it
        with self._agreed_upon(checkpoint, aside):
            if self.args.should_save and aside.exists():
                shutil.rmtree(aside)
        with self._agreed_upon(checkpoint, aside), self._writing_to(aside):
            super()._save_checkpoint(model, trial)
            self.save_progress(written)
        with self._agreed_upon(checkpoint, aside):
            self._name_the_best(run)
            if self.args.should_save:
                self.state.save_to_json(str(written / "trainer_state.json"))
                checkpoints.flush_all(written)
                checkpoints.publish(written, checkpoint, self.about_checkpoint())
                aside.rmdir()
                checkpoints.keep_latest(run, self.args.save_total_limit, also=self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # transformers would delete the latest checkpoint, which a run that was stopped goes on from, for the best one
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    @contextlib.contextmanager
    def _writing_to(self, aside: Path) -> Iterator[None]:
        pushes, self.args.push_to_hub = self.args.push_to_hub, False  # it is renamed first
        # where there is a best one, transformers waits for all processes, also for one that could not write
        best, self.state.best_global_step = self.state.best_global_step, None
        self.aside = aside
        try:
            yield
        finally:
            self.aside, self.args.push_to_hub = None, pushes
            self.state.best_global_step = best

    @contextlib.contextmanager
    def _agreed_upon(self, checkpoint: Path, aside: Path) -> Iterator[None]:
        """Where writing fails on one process, it fails on all, and what was written is deleted."""
        failure: BaseException | None = None
        try:
            yield
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            failure = error
        if not self.any_of_all(failure is not None):
            return
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        run = aside.parent
        last = checkpoints.latest(run)
        why = first_line(failure) if failure is not None else "another process could not write its part"
        left = f"{shutil.disk_usage(run).free / 1e9:.3g} GB are free there; " if run.is_dir() else ""
        is_full = not isinstance(failure, OSError) or failure.errno in (None, errno.ENOSPC, errno.EDQUOT)
        mend = "make room" if is_full else "mend that"
        raise CheckpointError(
            f"{checkpoint} cannot be written ({why}); {left}"
            + (f"{last.name} is whole: {mend}, and go on with --resume" if last else f"{mend}, and start again")
        ) from failure

    def _name_the_best(self, run: Path) -> None:
        """Have the state of every process say where the best checkpoint lies, or will, in the folder of the run."""
        if self.state.best_global_step:
            best = run / checkpoints.name_of(self.state.best_global_step)
            is_this = self.state.best_global_step == self.state.global_step
            self.state.best_model_checkpoint = str(best) if is_this or best.exists() else None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        if self.aside is None:
            super()._save(str(folder), state_dict)
            # a pickle of the arguments, which would run code when it is loaded; run.json has them
            (folder / "training_args.bin").unlink(missing_ok=True)
        elif self.args.should_save:
            # under the names that the model has, by which a run goes on: some families are published under others
            self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.args.allow_changes or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        ours = [{name: value for name, value in group.items() if name != "params"} for group in self._groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, settings in zip(self._groups, ours, strict=True):
            group.update(settings)
        scheduler: Any = self.lr_scheduler
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in self._groups]
            for group, factor in zip(self._groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
            scheduler._last_lr = [group["lr"] for group in self._groups]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups
