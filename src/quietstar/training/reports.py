"""A report of thoughts on held-out text at every evaluation of a training run, to watch them change."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback

from quietstar.errors import SettingsError
from quietstar.folders import MARKER
from quietstar.inspection.observe import trace
from quietstar.inspection.results import write_results
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.model import QuietStarForCausalLM
from quietstar.training.arguments import QuietStarTrainingArguments

FOLDER = "reports"


class WriteReports(TrainerCallback):
    """Writes reports/step-N: a trace of the first held-out rows, whether the thoughts matter, and report.html.

    Args:
        dataset: held-out text, or several by name, of which the first is taken.
        n_rows: rows of a report.
        tokenizer: of the model.
    """

    def __init__(self, dataset: Any, n_rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.dataset, self.n_rows, self.tokenizer = dataset, n_rows, tokenizer

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Think over the same rows each time, greedily, and write what was thought."""
        model = kwargs.get("model")
        if not state.is_world_process_zero or not isinstance(model, QuietStarForCausalLM):
            return
        texts = [TextToTrace(ids=list(row["input_ids"])) for row in islice(first_of(self.dataset), self.n_rows)]
        name = f"{Path(args.output_dir).name}, step {state.global_step}"
        found = trace(model, self.tokenizer, texts, TraceSettings(), name=name)
        folder = Path(args.output_dir) / FOLDER / f"step-{state.global_step:06}"
        folder.mkdir(parents=True, exist_ok=True)  # a run that is resumed evaluates a step again
        found.write_about(folder / MARKER)
        write_results(found, folder)


def first_of(dataset: Any) -> Iterable[Any]:
    """Held-out text; the first one of several by name."""
    return next(iter(dataset.values())) if isinstance(dataset, dict) else dataset


def report_writer(
    args: QuietStarTrainingArguments, tokenizer: PreTrainedTokenizerBase | None, eval_dataset: Any
) -> WriteReports | None:
    """What a run's settings ask for; None where they ask for no report.

    Raises:
        SettingsError: there is no evaluation, or no tokenizer, to make one with.
    """
    if not args.eval_report_rows:
        return None
    if eval_dataset is None:
        raise SettingsError("eval_report_rows are of held-out text, and none is held out; give an eval_size")
    if tokenizer is None:
        raise SettingsError("eval_report_rows need a tokenizer; give processing_class")
    return WriteReports(eval_dataset, args.eval_report_rows, tokenizer)
