"""Direct tasks at every evaluation of a training run."""

import torch
from accelerate.utils import gather
from transformers import PreTrainedTokenizerBase

from quietstar.evaluation.direct import alphabet_of, encode, score_items
from quietstar.evaluation.scoring import Continuation, Speaker
from quietstar.evaluation.tasks import find_task, load_items, parse_data
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy


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
        rank: int = 0,
        n_ranks: int = 1,
    ) -> dict[str, float]:
        """Mean answer probability and share of exact matches of each task, with seconds and items a second.

        Args:
            model: in evaluation mode.
            batch_size: items at a time.
            thinks: with thoughts at the scored positions, greedy; or the base model alone.
            prefix: of the figures' names.
            rank, n_ranks: each process scores every n-th item, as many as the others; all of them get all figures.
        """
        figures: dict[str, float] = {}
        for name, sequences in self.sequences.items():
            speaker = Speaker(model, ThinkPolicy.parse("always") if thinks else None)
            n_each = -(-len(sequences) // n_ranks)
            ours = [sequences[min(rank + i * n_ranks, len(sequences) - 1)] for i in range(n_each)]
            found = score_items(speaker, ours, batch_size)
            scores = torch.stack([found.answer_probability.double(), found.exact_match.double()], dim=1).to(
                model.device
            )
            by_item = gather(scores).view(n_ranks, n_each, 2).transpose(0, 1).flatten(0, 1)
            means = by_item[: len(sequences)].mean(0)
            figures |= {
                f"{prefix}_{name}_answer_probability": float(means[0]),
                f"{prefix}_{name}_exact_match": float(means[1]),
                f"{prefix}_{name}_runtime": round(found.seconds, 4),
                f"{prefix}_{name}_samples_per_second": round(len(sequences) / found.seconds, 3),
            }
        return figures
