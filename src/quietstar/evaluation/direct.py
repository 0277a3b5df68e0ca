"""Direct answers, the paper's zero-shot measure: how likely the model finds the right answer at once.

`answer_probability` is what the released code calls accuracy: the product, over the answer's tokens that belong to the
task's alphabet, of their probabilities renormalised over it, teacher-forced; and the mean of these over items.
`exact_match` asks whether each token of the answer and of the line's end is the likeliest in the whole vocabulary:
whether greedy decoding would write the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError
from quietstar.evaluation.alphabet import Alphabet, digits, letters
from quietstar.evaluation.scoring import Continuation, Scores, Speaker, Stopwatch, score
from quietstar.evaluation.tasks import MARKER, Item, Task

MAX_LENGTH = 256
"""tokens of an item, as the released code has it"""


@dataclass(slots=True)
class DirectScores:
    """What a model made of a task's items, [n] each, in the dataset's order."""

    answer_probability: Tensor
    exact_match: Tensor
    """bool"""
    share_thought: float
    """share of the scored positions that were thought at"""
    seconds: float
    of_tokens: list[Scores]
    """of each item"""


def alphabet_of(task: Task, tokenizer: PreTrainedTokenizerBase) -> Alphabet:
    """The tokens that answers of a task are made of."""
    return digits(tokenizer) if task.numeric else letters(tokenizer)


def encode(
    items: list[Item], tokenizer: PreTrainedTokenizerBase, alphabet: Alphabet, max_length: int = MAX_LENGTH
) -> tuple[list[Continuation], int]:
    """Tokens of each item, of which those after the marker are scored; and how many items were cut.

    An item of more than `max_length` tokens loses its first ones, so that the answer stays.

    Raises:
        DataError: an answer alone is longer than that.
    """
    found, n_cut = [], 0
    for item in items:
        ids, first = after_marker(item.text, tokenizer)
        if over := max(0, len(ids) - max_length):
            n_cut, ids, first = n_cut + 1, ids[over:], first - over
        if first < 1:
            raise DataError(
                f"the answer of item {item.index + 1} has {len(ids) - first} tokens; give max_length more than that"
            )
        counted = [token for token in ids[first:] if token in alphabet.ids]
        if ids[-1] not in alphabet.ids or len(counted) < 2:
            raise DataError(
                f"the tokenizer writes the answer of item {item.index + 1}, {item.answer!r}, with tokens that are not "
                "in the task's alphabet; leave it out, or use --cot"
            )
        found.append(Continuation(ids=ids, first=first, alphabet=alphabet.ids))
    return found, n_cut


def after_marker(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Tokens of a text, and the index of the first one after that which completes its last marker."""
    end = text.rindex(MARKER) + len(MARKER)
    if tokenizer.is_fast:
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, ends = encoded["input_ids"], [stop for _, stop in encoded["offset_mapping"]]
        first = next(index for index, stop in enumerate(ends) if stop >= end) + 1
    else:
        ids = tokenizer(text)["input_ids"]
        n_markers = tokenizer.decode(ids).count(MARKER)
        if n_markers == 0:
            raise DataError("the tokenizer does not keep line ends, after which answers are looked for; use --cot")
        first = len(ids)
        while tokenizer.decode(ids[: first - 1]).count(MARKER) == n_markers:
            first -= 1
    if ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids, first


def score_items(
    speaker: Speaker,
    sequences: list[Continuation],
    batch_size: int,
    *,
    measure: str | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> DirectScores:
    """Score a task's items.

    Args:
        speaker: the model.
        sequences: of `encode`.
        batch_size: items at a time.
        measure: see `scoring.score`.
        progress: told how many items this process has done, and their mean answer probability so far.
    """
    sums = [0, 0.0]

    def add(scores: list[Scores]) -> None:
        sums[0] += len(scores)
        sums[1] += float(sum(each.within.sum().exp() for each in scores))
        if progress is not None:
            progress(int(sums[0]), sums[1] / sums[0])

    watch = Stopwatch(speaker.device)
    found = score(speaker, sequences, batch_size, measure=measure, progress=add)
    seconds = watch.seconds
    return DirectScores(
        answer_probability=torch.stack([each.within.double().sum().exp() for each in found]),
        exact_match=torch.stack([each.is_likeliest.all() for each in found]),
        share_thought=float(torch.cat([each.thought for each in found]).float().mean()),
        seconds=seconds,
        of_tokens=found,
    )
