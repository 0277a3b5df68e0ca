"""Perplexity of held-out text with and without thoughts, and the gain by the difficulty of a token.

Difficulty is the token's own negative log-likelihood under the base model (arXiv 2403.09629, figure 5). Such bins show
regression to the mean: where the base model was unlucky, any other prediction tends to do better. Bins by entropy
of the base prediction, which does not depend on the token that comes, are free of that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError
from quietstar.evaluation.scoring import Continuation, Scores, Speaker, Stopwatch, mean_length, score
from quietstar.evaluation.sweep import pyplot
from quietstar.reporting.interval import Estimate, bootstrap
from quietstar.text.tokens import token_ids

EDGES = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, float("inf"))
"""edges of the bins, in nats"""


@dataclass(frozen=True, slots=True)
class Bin:
    """Tokens of similar difficulty."""

    low: float
    high: float
    n: int
    base_nll: float
    thinking_nll: float
    gain: Estimate
    """reduction of the nll by thoughts, in nats; windows are resampled"""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity of a text, as its logarithm: nll in nats per token."""

    n_tokens: int
    base_nll: Estimate
    thinking_nll: Estimate | None
    """None for a model that does not think"""
    gain: Estimate | None
    by_nll: list[Bin]
    by_entropy: list[Bin]
    seconds: dict[str, float]
    """time of scoring, without thoughts and with them"""
    thought_length: float | None = None
    """mean number of sampled tokens of a thought"""


def windows(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, limit: int | None
) -> list[Continuation]:
    """Split texts into consecutive windows of at most max_length tokens, each scored from its second token.

    Raises:
        DataError: no text has two tokens.
    """
    rows = token_ids(tokenizer, texts)
    parts = [ids[first : first + max_length] for ids in rows for first in range(0, len(ids), max_length)]
    parts = [part for part in parts if len(part) > 1][:limit]
    if not parts:
        raise DataError(f"the text has {sum(map(len, rows))} tokens; give one with at least two")
    return [Continuation(ids=part, first=1) for part in parts]


def measure_perplexity(
    base: Speaker,
    thinking: Speaker | None,
    sequences: list[Continuation],
    batch_size: int,
    progress: Callable[[int, float], None] | None = None,
) -> Perplexity:
    """Return the perplexity of a text's windows, without thoughts and, if the model can think, with them.

    `progress` is called with the number of windows that this process has done, and their mean nll.
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
        return Perplexity(_n(base_nll), mean_over_tokens(base_nll), None, None, [], [], seconds)
    watch = Stopwatch(base.device)
    after = score(thinking, sequences, batch_size, progress=add)
    seconds["thinking"] = watch.seconds
    thinking_nll = [-each.logprob for each in after]
    gain = [a - b for a, b in zip(base_nll, thinking_nll, strict=True)]
    entropies = [each.measured for each in without]
    return Perplexity(
        n_tokens=_n(base_nll),
        base_nll=mean_over_tokens(base_nll),
        thinking_nll=mean_over_tokens(thinking_nll),
        gain=mean_over_tokens(gain),
        by_nll=_bins(base_nll, base_nll, thinking_nll),
        by_entropy=_bins(entropies, base_nll, thinking_nll),
        seconds=seconds,
        thought_length=mean_length(after),
    )


def _n(windows: list[Tensor]) -> int:
    return sum(map(len, windows))


def mean_over_tokens(windows: list[Tensor]) -> Estimate:
    """Return the mean over the tokens of windows, resampled as wholes: neighbouring tokens are not independent."""
    filled = [each.double() for each in windows if len(each)]
    weights = torch.tensor([len(each) for each in filled], dtype=torch.float64)
    return bootstrap(torch.stack([each.mean() for each in filled]), weights)


def _bins(difficulty: list[Tensor], base_nll: list[Tensor], thinking_nll: list[Tensor]) -> list[Bin]:
    found = []
    for low, high in pairwise(EDGES):
        inside = [(low <= window) & (window < high) for window in difficulty]
        base = [nll[mask] for nll, mask in zip(base_nll, inside, strict=True)]
        thinking = [nll[mask] for nll, mask in zip(thinking_nll, inside, strict=True)]
        if n := _n(base):
            gain = mean_over_tokens([a - b for a, b in zip(base, thinking, strict=True)])
            found.append(Bin(low, high, n, float(torch.cat(base).mean()), float(torch.cat(thinking).mean()), gain))
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
