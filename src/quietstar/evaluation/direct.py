"""Direct answers, the paper's zero-shot measure: the probability of the right answer without written reasoning.

`answer_probability` is what the released code calls accuracy: the product of the teacher-forced probabilities of the
answer's tokens that are in the task's alphabet, each renormalised over the alphabet; and the mean of these over items.
`exact_match` tells whether each token of the answer and its newline is the likeliest of the whole vocabulary, which is
whether greedy decoding would write the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError
from quietstar.evaluation.alphabet import Alphabet, digits, letters
from quietstar.evaluation.scoring import Continuation, Scores, Speaker, Stopwatch, mean_length, score
from quietstar.evaluation.tasks import MARKER, Item, Task

MAX_LENGTH = 256
"""maximum tokens of an item, as in the released code"""


@dataclass(slots=True)
class DirectScores:
    """A model's scores of a task's items, [n] each, in the dataset's order."""

    answer_probability: Tensor
    exact_match: Tensor
    """bool"""
    share_thought: float
    """share of the scored positions with a thought"""
    thought_length: float | None
    """mean number of sampled tokens of a thought; None without thoughts"""
    seconds: float
    of_tokens: list[Scores]
    """scores of the tokens of each item"""


def alphabet_of(task: Task, tokenizer: PreTrainedTokenizerBase) -> Alphabet:
    """Return the tokens of which the answers of a task consist."""
    return digits(tokenizer) if task.numeric else letters(tokenizer)


def encode(
    items: list[Item], tokenizer: PreTrainedTokenizerBase, alphabet: Alphabet, max_length: int = MAX_LENGTH
) -> tuple[list[Continuation], int]:
    """Return the tokens of each item, of which those after the marker are scored, and how many items were cut.

    An item of more than `max_length` tokens is cut at the start, so that the answer stays.

    Raises:
        DataError: an answer alone is longer than that, or has tokens outside the alphabet.
    """
    found, n_cut = [], 0
    for item in items:
        ids, first = after_marker(item.text, tokenizer)
        if over := max(0, len(ids) - max_length):
            n_cut, ids, first = n_cut + 1, ids[over:], first - over
        if first < 1:
            raise DataError(
                f"the answer of item {item.index + 1} has {len(ids) - first} tokens; give a max_length above that"
            )
        counted = [token for token in ids[first:] if token in alphabet.ids]
        if ids[-1] not in alphabet.ids or len(counted) < 2:
            raise DataError(
                f"the answer of item {item.index + 1}, {item.answer!r}, has tokens outside the task's alphabet; remove "
                "that item, or use --cot"
            )
        found.append(Continuation(ids=ids, first=first, alphabet=alphabet.ids))
    return found, n_cut


def after_marker(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Return the tokens of a text, and the index of the first token after its last marker."""
    end = text.rindex(MARKER) + len(MARKER)
    if tokenizer.is_fast:
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, ends = encoded["input_ids"], [stop for _, stop in encoded["offset_mapping"]]
        first = next(index for index, stop in enumerate(ends) if stop >= end) + 1
    else:
        ids = tokenizer(text)["input_ids"]
        n_markers = tokenizer.decode(ids).count(MARKER)
        if n_markers == 0:
            raise DataError("the tokenizer drops newlines, by which answers are found in a text; use --cot")
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
    """Return the scores of a task's items.

    `progress` is called with the number of items that this process has done, and their mean answer probability.
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
        thought_length=mean_length(found),
        seconds=seconds,
        of_tokens=found,
    )
