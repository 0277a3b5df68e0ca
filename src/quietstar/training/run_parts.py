"""The parts of a training run, built together."""

from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerBase

from quietstar.learn import Counts
from quietstar.model import QuietStarForCausalLM
from quietstar.output import QuietStarOutput
from quietstar.runs.processes import Processes
from quietstar.runs.seeds import mixed_seed
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.distillation.teacher import Teacher
from quietstar.training.figures import TrainingFigures
from quietstar.training.health import HealthChecks
from quietstar.training.held_out import HeldOutFigures
from quietstar.training.memory import Batch
from quietstar.training.parts import Parts
from quietstar.training.positions import add_n_ahead, add_think_at
from quietstar.training.reference import Reference
from quietstar.training.rollouts import Rollouts
from quietstar.training.schedule import Schedule
from quietstar.training.step_guard import StepGuard
from quietstar.training.stream_place import StreamPlace
from quietstar.training.tally import count_labels
from quietstar.training.tasks import TaskFigures


class RunParts(Parts):
    """What a training run keeps; checkpoints hold the states of its parts under the names of these attributes.

    Raises:
        QuietStarError: a part does not take these arguments; items of a task cannot be loaded.
    """

    def __init__(
        self, args: QuietStarTrainingArguments, processes: Processes, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self.figures = TrainingFigures(processes)
        self.guard = StepGuard(args, processes, tokenizer)
        self.held_out = HeldOutFigures(processes, args)
        self.place = StreamPlace(args.dataloader_num_workers)
        self.schedule = Schedule(processes)
        self.health = HealthChecks()
        self.reference = Reference(args, processes)
        self.rollouts = Rollouts(args, self.reference)
        self.args, self.processes = args, processes
        self.tasks = TaskFigures(args, tokenizer)
        self.teacher: Teacher | None = None
        self._fresh, self._before_step = self.state_dict(), self.snapshot()

    def reset(self) -> None:
        """Forget an earlier run."""
        self.load_state_dict(self._fresh)

    def begin(self, model: QuietStarForCausalLM) -> None:
        """Begin a run with its model, before the states of a checkpoint are loaded."""
        self.figures.begin()
        self.reference.begin(model)
        if self.processes.rank > 0:  # Each process samples its own thoughts; seeds of the data are shared.
            torch.manual_seed(mixed_seed(self.args.seed, self.processes.rank))

    def begin_step(
        self, batches: list[Batch], n_before: int, model: QuietStarForCausalLM, run: Callable[..., QuietStarOutput]
    ) -> Counts | None:
        """Begin an optimizer step: sample where and how long to think, and return its label Counts over all processes.

        Args:
            batches: of the step on this process; without any there is no step, and None is returned. Each may get
                think_at, n_ahead, thoughts and a rollout; see Rollouts.
            n_before: steps before it.
            model: whose weights train.
            run: its forward pass, as the run's processes share it.
        """
        if not batches:
            return None
        args, config, step = self.args, model.config, n_before // self.args.policy_epochs
        add_n_ahead(batches, args.n_ahead_min, config.n_ahead, seed=args.seed, step=step)
        if not self.rollouts.restore(batches, n_before):
            add_think_at(batches, args, step=step, rank=self.processes.rank, run=run)
            seeds = [mixed_seed(args.seed, step, index, self.processes.rank) for index in range(len(batches))]
            self.rollouts.score(batches, model, run, seeds)
            if self.teacher is not None:
                self.teacher.teach(batches, seeds)
        self.guard.begin(batches, n_before + 1)
        self._before_step = self.snapshot()
        return count_labels(batches, config.n_ahead_talk, self.processes)

    def rollback_step(self) -> None:
        """Roll the parts back to where they were before the current step."""
        self.rollback(self._before_step)
