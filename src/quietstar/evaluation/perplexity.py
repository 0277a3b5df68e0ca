"""Perplexity of held-out text with and without thoughts, and how much thoughts help by the difficulty of a token.

Difficulty is the token's own negative log-likelihood under the base model (arXiv 2403.09629, figure 5). Bins by it are
chosen by the base model's luck: where the base model did badly, any other prediction tends to do better. The bins by
entropy of the base prediction, which does not know what token comes, are free of that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError
from quietstar.evaluation.scoring import Continuation, Scores, Speaker, Stopwatch, score
from quietstar.evaluation.sweep import pyplot
from quietstar.reporting.interval import Estimate, bootstrap
from quietstar.text.tokens import token_ids

EDGES = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, float("inf"))
"""of bins, in nats"""


@dataclass(frozen=True, slots=True)
class Bin:
    """Tokens of like difficulty."""

    low: float
    high: float
    n: int
    base_nll: float
    thinking_nll: float
    gain: Estimate
    """nats that thoughts take off the nll; resampled by window"""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of a text. nll in nats a token; perplexity is exp of it."""

    n_tokens: int
    base_nll: Estimate
    thinking_nll: Estimate | None
    """None for a model that does not think"""
    gain: Estimate | None
    by_nll: list[Bin]
    by_entropy: list[Bin]
    seconds: dict[str, float]
    """of scoring, without thoughts and with them"""


def windows(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int, limit: int | None) -> list[Continuation]:
    """Windows of at most max_length tokens, one after the other; each is scored from its second token on.

    Raises:
        DataError: there are no two tokens.
    """
    (ids,) = token_ids(tokenizer, [text])
    parts = [ids[first : first + max_length] for first in range(0, len(ids), max_length)]
    parts = [part for part in parts if len(part) > 1][:limit]
    if not parts:
        raise DataError(f"the text has {len(ids)} tokens; give one with at least two")
    return [Continuation(ids=part, first=1) for part in parts]


def measure_perplexity(
    base: Speaker,
    thinking: Speaker | None,
    sequences: list[Continuation],
    batch_size: int,
    progress: Callable[[int, float], None] | None = None,
) -> Perplexity:
    """Score windows of a text without thoughts, and with them.

    Args:
        base: the model without thoughts.
        thinking: the model with them; None where it has none.
        sequences: of `windows`.
        batch_size: windows at a time.
        progress: told how many windows this process has done, and their mean nll so far.
    """
    sums = [0, 0, 0.0]

    def add(scores: list[Scores]) -> None:
        sums[0] += len(scores)
        sums[1] += sum(len(each.logprob) for each in scores)
        sums[2] -= float(sum(each.logprob.sum() for each in scores))
        if progress is not None:
            progress(int(sums[0]), sums[2] / sums[1])

    seconds = {}
    watch = Stopwatch(base.device)
    without = score(base, sequences, batch_size, measure="entropy", progress=None if thinking else add)
    seconds["base"] = watch.seconds
    base_nll = [-each.logprob for each in without]
    if thinking is None:
        return Perplexity(_n(base_nll), _mean(base_nll), None, None, [], [], seconds)
    watch = Stopwatch(base.device)
    after = score(thinking, sequences, batch_size, progress=add)
    seconds["thinking"] = watch.seconds
    thinking_nll = [-each.logprob for each in after]
    gain = [a - b for a, b in zip(base_nll, thinking_nll, strict=True)]
    entropies = [each.measured for each in without]
    return Perplexity(
        n_tokens=_n(base_nll),
        base_nll=_mean(base_nll),
        thinking_nll=_mean(thinking_nll),
        gain=_mean(gain),
        by_nll=_bins(base_nll, base_nll, thinking_nll),
        by_entropy=_bins(entropies, base_nll, thinking_nll),
        seconds=seconds,
    )


def _n(windows: list[Tensor]) -> int:
    return sum(map(len, windows))


def _mean(windows: list[Tensor]) -> Estimate:
    """Over tokens, windows resampled: tokens of one text are not independent. Windows without any are left out."""
    filled = [each.double() for each in windows if len(each)]
    weights = torch.tensor([len(each) for each in filled], dtype=torch.float64)
    return bootstrap(torch.stack([each.mean() for each in filled]), weights)


def _bins(difficulty: list[Tensor], base_nll: list[Tensor], thinking_nll: list[Tensor]) -> list[Bin]:
    found = []
    for low, high in pairwise(EDGES):
        inside = [(low <= of) & (of < high) for of in difficulty]
        without, after = ([of[some] for of, some in zip(nll, inside, strict=True)] for nll in (base_nll, thinking_nll))
        n = _n(without)
        if n:
            gain = _mean([a - b for a, b in zip(without, after, strict=True)])
            base, thinking = (float(torch.cat(of).mean()) for of in (without, after))
            found.append(Bin(low, high, n, base, thinking, gain))
    return found


def picture(found: Perplexity, path: Path) -> None:
    """Draw the gain by difficulty.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = pyplot("the plot of a perplexity")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
    for side, bins, what in ((axes[0], found.by_nll, "base nll"), (axes[1], found.by_entropy, "base entropy")):
        names = [_range(each) for each in bins]
        middle = [each.gain.value for each in bins]
        below = [each.gain.value - each.gain.low for each in bins]
        above = [each.gain.high - each.gain.value for each in bins]
        side.bar(names, middle, yerr=[below, above], capsize=3, color="tab:blue", alpha=0.7)
        side.axhline(0, color="black", linewidth=0.8)
        side.set(xlabel=f"{what} of the token, nats")
        side.tick_params(axis="x", rotation=30)
    axes[0].set(ylabel="nats gained by thoughts")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _range(each: Bin) -> str:
    return f"{each.low:g} and more" if each.high == float("inf") else f"{each.low:g} - {each.high:g}"
