"""The parts of a training run, built together."""

from transformers import PreTrainedTokenizerBase

from quietstar.learn import Counts
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.figures import TrainingFigures
from quietstar.training.health import HealthChecks
from quietstar.training.held_out import HeldOutFigures
from quietstar.training.parts import Parts
from quietstar.training.positions import draw_positions_of_step
from quietstar.training.schedule import Schedule
from quietstar.training.step_guard import Batch, StepGuard
from quietstar.training.stream_place import StreamPlace
from quietstar.training.tally import count_labels
from quietstar.training.tasks import TaskFigures


class RunParts(Parts):
    """What a training run keeps; checkpoints hold the parts' states under these names.

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
        super().__init__(vars(self))
        self.args, self.processes = args, processes
        self.tasks = TaskFigures(args, tokenizer)
        self._at_first, self._before_step = self.state_dict(), self.snapshot()

    def reset(self) -> None:
        """Begin a run: forget the one before."""
        self.load_state_dict(self._at_first)

    def begin_step(self, batches: list[Batch], n_before: int, n_ahead_talk: int) -> Counts | None:
        """Begin an optimizer step: choose where to think; return how many labels it has, on all processes together.

        Args:
            batches: of the step on this process.
            n_before: steps before it.
            n_ahead_talk: of the model.
        """
        if not batches:
            return None
        args, rank = self.args, self.processes.rank
        draw_positions_of_step(batches, args.think_fraction, seed=args.seed, step=n_before, rank=rank)
        self.guard.begin(batches, n_before + 1)
        self._before_step = self.snapshot()
        return count_labels(batches, n_ahead_talk, self.processes)

    def take_back_step(self) -> None:
        """Take back what the step under way has added to the parts."""
        self.rollback(self._before_step)

    def judge_step(self, *, is_scaled: bool) -> bool:
        """Return whether the optimizer may see this step; too many bad ones in a row stop the run. See `StepGuard`."""
        why = self.guard.judge(is_scaled=is_scaled)
        if why is None:
            self.figures.add_step(self.guard.losses)
        else:
            self.schedule.stopped_by = self.guard.too_many(why)
        return why is None
