"""Reports of thoughts on held-out text, one at every evaluation of a training run, to watch them change."""

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback

from quietstar.errors import DataError, SettingsError, first_line
from quietstar.inspection.observe import trace
from quietstar.inspection.results import write_results
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from quietstar.learn import IGNORED
from quietstar.model import QuietStarForCausalLM
from quietstar.runs.folders import claim

logger = logging.getLogger(__name__)

FOLDER = "reports"


class WriteReports(TrainerCallback):
    """Writes reports/step-N: a trace of the first held-out rows, whether their thoughts matter, and report.html.

    Args:
        dataset: held-out text.
        n_rows: of it in a report.
        tokenizer: of its tokens.
        add_report: is called with each report's folder and step, on the first process.
    """

    def __init__(
        self, dataset: Any, n_rows: int, tokenizer: PreTrainedTokenizerBase, add_report: Callable[[Path, int], None]
    ) -> None:
        self.dataset, self.n_rows, self.tokenizer, self.add_report = dataset, n_rows, tokenizer, add_report
        self.step = -1
        """of the latest report"""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a report of greedy thoughts on the same rows each time.

        Several held-out texts are evaluated one by one, but a step has only one report.
        """
        model = kwargs.get("model")
        if state.global_step == self.step or not isinstance(model, QuietStarForCausalLM):
            return
        self.step = state.global_step
        rows = islice(first_of(self.dataset), self.n_rows)
        texts = [_text(row) for row in rows if len(row["input_ids"])]
        name = f"{args.run_name or Path(args.output_dir).name}, step {state.global_step}"
        folder = _folder(args, state.global_step)
        origin = {}
        if state.global_step > 0 and model.config.lora is None and _add_untrained(texts, _folder(args, 0)):
            origin["before"] = "this run's step 0"
        # If weights are sharded, all processes must take part.
        found = trace(model, self.tokenizer, texts, TraceSettings(), name=name, origin=origin)
        if not state.is_world_process_zero:
            return
        try:
            write_results(found, claim(folder, found.about, overwrite=True))  # A resumed run may evaluate a step again.
        except (OSError, SettingsError) as error:  # The run is worth more than a report.
            logger.warning("the report of step %d cannot be written: %s", state.global_step, first_line(error))
        else:
            self.add_report(folder, state.global_step)


def _folder(args: Any, step: int) -> Path:
    return Path(args.output_dir) / FOLDER / f"step-{step:06}"


def _add_untrained(texts: list[TextToTrace], first: Path) -> bool:
    """Return whether a run's first report has the untrained model's predictions of texts, and add them to these."""
    try:
        columns = Trace.load(first).columns
    except DataError:  # The run did not begin with an evaluation, or began on another machine.
        return False
    if columns["token_id"] != [token for text in texts for token in text.ids]:
        return False
    base = [values[0] if values else None for values in columns["base_logprob"]]
    for text in texts:
        text.before_logprob, base = base[: len(text.ids)], base[len(text.ids) :]
    return True


def first_of(dataset: Any) -> Iterable[Any]:
    """Return held-out text, the first one of several."""
    return next(iter(dataset.values())) if isinstance(dataset, dict) else dataset


def _text(row: Any) -> TextToTrace:
    """Return a row with thoughts where the next token has a label, as in training."""
    ids = [int(token) for token in row["input_ids"]]
    labels = row.get("labels")
    if labels is None:
        return TextToTrace(ids=ids)
    labels = [int(label) for label in labels]
    return TextToTrace(ids=ids, labels=labels, may_think=[i for i, label in enumerate(labels[1:]) if label != IGNORED])
