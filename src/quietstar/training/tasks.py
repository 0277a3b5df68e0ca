"""Direct tasks at every evaluation of a training run."""

from transformers import PreTrainedTokenizerBase

from quietstar.evaluation.direct import alphabet_of, encode, score_items
from quietstar.evaluation.scoring import Continuation, Speaker
from quietstar.evaluation.tasks import find_task, load_items, parse_data
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.runs.processes import Processes


class TaskFigures:
    """Items of some tasks, loaded once, and a model's figures on them.

    Args:
        names: of the tasks.
        data: local files, such as gsm8k=FILE.
        limit: items of each task at most.
        tokenizer: of the model.

    Raises:
        QuietStarError: a task is unknown, or its items cannot be had.
    """

    def __init__(
        self, names: list[str], data: list[str], limit: int | None, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        paths = parse_data(data)
        self.sequences: dict[str, list[Continuation]] = {}
        for name in names:
            task = find_task(name)
            items = load_items(task, paths.get(name), limit)
            self.sequences[name], _ = encode(items, tokenizer, alphabet_of(task, tokenizer))

    def of(
        self,
        model: QuietStarForCausalLM,
        batch_size: int,
        *,
        thinks: bool,
        prefix: str,
        processes: Processes,
    ) -> dict[str, float]:
        """Mean answer probability and share of exact matches of each task, with seconds and items a second.

        Args:
            model: in evaluation mode.
            batch_size: items at a time.
            thinks: with thoughts at the scored positions, greedy; or the base model alone.
            prefix: of the figures' names.
            processes: which share the items; all of them get all figures.
        """
        figures: dict[str, float] = {}
        for name, sequences in self.sequences.items():
            speaker = Speaker(model, ThinkPolicy.parse("always") if thinks else None, processes=processes)
            found = score_items(speaker, sequences, batch_size)
            figures |= {
                f"{prefix}_{name}_answer_probability": float(found.answer_probability.mean()),
                f"{prefix}_{name}_exact_match": float(found.exact_match.double().mean()),
                f"{prefix}_{name}_runtime": round(found.seconds, 4),
                f"{prefix}_{name}_samples_per_second": round(len(sequences) / found.seconds, 3),
            }
        return figures
