"""Answer probability and nll by the length of thoughts, against the forward passes that a token then takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quietstar.errors import SettingsError
from quietstar.evaluation.perplexity import mean_over_tokens
from quietstar.evaluation.scoring import Scores
from quietstar.evaluation.sweep import pyplot
from quietstar.policy import ThinkPolicy
from quietstar.reporting.interval import Estimate, bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPoint:
    """A task or a text with thoughts of one length. Differences are paired, to the same without thoughts."""

    n_ahead: int | None
    """tokens of a thought, start and end included; None without thoughts"""
    passes: float
    """forward passes that decoding makes for a token, on average"""
    nll: Estimate
    """nats a scored token; items or windows are resampled"""
    nll_difference: Estimate
    answer_probability: Estimate | None
    """None for a text"""
    answer_difference: Estimate | None


def swept_lengths(lengths: str) -> list[int]:
    """Return the values of n_ahead in a list with commas, rising.

    Raises:
        SettingsError: one of them is not a length of thoughts.
    """
    try:
        found = sorted({int(length) for length in lengths.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 2:
        raise SettingsError(
            f"sweep_n_ahead is {lengths!r}; give whole numbers of at least 2, separated by commas, such as 2,4,8,16"
        )
    return found


def passes_a_token(policy: ThinkPolicy, n_ahead: int, scores: list[Scores], *, branches_differ: bool) -> float:
    """Return how many forward passes decoding makes for a token on average, some with thoughts; see `quietstar.decode`.

    Start is a pass of its own if the policy looks at the base prediction first, or branches have adapters of their own;
    and so is the end of a thought that ends early.
    """
    thought, length = (torch.cat([getattr(each, of) for each in scores]) for of in ("thought", "thought_length"))
    further = length + (length < n_ahead - 2) + (policy.needs_base or branches_differ)
    return 1 + float((thought * further).double().mean())


def length_point(
    n_ahead: int | None, passes: float, scores: list[Scores], base: list[Scores], *, is_task: bool
) -> LengthPoint:
    """Return the point of one length, from scores with such thoughts and scores of the same without thoughts."""
    nll, base_nll = ([-each.logprob for each in of] for of in (scores, base))
    probability, base_probability = (
        torch.stack([each.within.double().sum().exp() for each in of]) for of in (scores, base)
    )
    return LengthPoint(
        n_ahead=n_ahead,
        passes=passes,
        nll=mean_over_tokens(nll),
        nll_difference=mean_over_tokens([a - b for a, b in zip(nll, base_nll, strict=True)]),
        answer_probability=bootstrap(probability) if is_task else None,
        answer_difference=bootstrap(probability - base_probability) if is_task else None,
    )


def picture(points: dict[str, list[LengthPoint]], path: Path) -> None:
    """Draw the curves of each task and text with their intervals, each beside a band without thoughts.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = pyplot("the curves of a sweep")
    of_tasks = {
        name: [each.answer_probability for each in curve if each.answer_probability] for name, curve in points.items()
    }
    sides = [("answer probability, %", 100, {name: curve for name, curve in of_tasks.items() if curve})]
    sides += [("nll, nats a token", 1, {name: [each.nll for each in curve] for name, curve in points.items()})]
    sides = [side for side in sides if side[2]]
    figure, axes = plt.subplots(1, len(sides), figsize=(5 * len(sides), 4), layout="constrained", squeeze=False)
    for side, (what, scale, curves) in zip(axes[0], sides, strict=True):
        for name, estimates in curves.items():
            _draw(side, name, [point.passes for point in points[name]], estimates, scale)
        side.set(xlabel="forward passes a token", ylabel=what)
        side.grid(alpha=0.3)
        side.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(side: Any, name: str, passes: list[float], estimates: list[Estimate], scale: float) -> None:
    """Draw a curve; its first estimate is that without thoughts."""
    base, *others = estimates
    values = [scale * each.value for each in others]
    below = [scale * (each.value - each.low) for each in others]
    above = [scale * (each.high - each.value) for each in others]
    curve = side.errorbar(passes[1:], values, yerr=[below, above], capsize=3, marker="o", label=name)
    color = curve.lines[0].get_color()
    side.axhspan(scale * base.low, scale * base.high, color=color, alpha=0.12)
    side.axhline(scale * base.value, color=color, linestyle="--", label=f"{name}, no thoughts")
