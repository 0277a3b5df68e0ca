"""An evaluation under way: the model, its settings, and the figures so far."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.evaluation.arguments import EvaluateArguments
from quietstar.evaluation.baseline import Baseline
from quietstar.evaluation.report import Figure
from quietstar.evaluation.scoring import Speaker
from quietstar.evaluation.tasks import Item
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.reporting.interval import Estimate, bootstrap
from quietstar.runs.processes import Processes


@dataclass(slots=True)
class Evaluation:
    """A model, the settings of its evaluation, and the figures so far."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    args: EvaluateArguments
    folder: Path
    figures: list[Figure]
    console: Console
    processes: Processes
    baseline: Baseline | None = None

    @property
    def modes(self) -> list[str]:
        """`original` for a plain model, `base` and `thinking` for a thinking one."""
        return ["base", "thinking"] if isinstance(self.model, QuietStarForCausalLM) else ["original"]

    def speaker(self, mode: str, think: str | None = None, n_ahead: int | None = None) -> Speaker:
        """Return the model in a mode, with a new generator for sampled thoughts, seeded by settings and process.

        Policy and length of thoughts are those of the settings unless others are given.
        """
        policy = ThinkPolicy.parse(think or self.args.think) if mode == "thinking" else None
        generator = torch.Generator(self.model.device).manual_seed(self.args.seed + self.processes.rank)
        how = (self.args.thought_temperature, self.args.thought_top_p, generator, self.processes)
        return Speaker(self.model, policy, *how, n_ahead=n_ahead or self.args.n_ahead)

    def beside_baseline(self, values: torch.Tensor, items: list[Item], name: str, measure: str) -> Estimate | None:
        """Return the mean difference of values [n] from an earlier evaluation's; None without one."""
        if self.baseline is None:
            return None
        return bootstrap(values.double() - self.baseline.values(items, name, measure))

    @contextmanager
    def progress(self, what: str, n: int, score: str) -> Iterator[Callable[[int, float], None]]:
        """Show a progress bar with the running score, on the first process."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(
            *columns,
            TextColumn("{task.fields[score]}"),
            console=self.console,
            transient=True,
            disable=not (self.console.is_terminal and self.processes.is_first),
        ) as bar:
            task = bar.add_task(what, total=-(-n // self.processes.n), score="")
            yield lambda done, value: bar.update(task, completed=done, score=f"{score} {value:.4f}")
