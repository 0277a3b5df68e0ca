"""Accuracy by the share of positions with a thought, for every threshold of a policy at once.

Teacher-forced, a thought at one position changes the prediction at that position only. So one pass without thoughts and
one with all of them give the result of every threshold.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quietstar.errors import SettingsError, need
from quietstar.evaluation.direct import DirectScores
from quietstar.policy import KINDS, ThinkPolicy

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""approximate shares of positions with a thought: the thresholds are quantiles of what the rule measures"""

SWEPT = ("entropy", "margin", "mixing_head")


@dataclass(frozen=True, slots=True)
class Point:
    """One threshold."""

    policy: str
    share_thought: float
    answer_probability: float
    exact_match: float


def swept_rule(policy: str) -> str:
    """Return the rule whose threshold is swept.

    Raises:
        SettingsError: the policy is not one rule with a threshold.
    """
    rules = ThinkPolicy.parse(policy).rules
    if len(rules) != 1 or rules[0].name not in SWEPT:
        raise SettingsError(
            f"sweep needs --think with a single threshold, and got {policy!r}; give entropy:2.5, margin:0.2 or "
            "mixing_head:0.1 (any number)"
        )
    return rules[0].name


def sweep(rule: str, base: DirectScores, thinking: DirectScores) -> list[Point]:
    """Return a point for each threshold of a rule, from never to always thinking.

    `base` has the rule's measurements; `thinking` has a thought before every scored token.
    """
    measured = torch.cat([scores.measured for scores in base.of_tokens])
    up = -1 if KINDS[rule].holds(torch.tensor(0.0), 1.0) else 1  # whether large or small measurements cause a thought
    points = []
    for share in SHARES:
        wanted = torch.quantile(up * measured, 1 - share).item() * up
        threshold = {0.0: up * float("inf"), 1.0: -up * float("inf")}.get(share, wanted)
        probability, exact, thought = [], [], []
        for without, after in zip(base.of_tokens, thinking.of_tokens, strict=True):
            thinks = KINDS[rule].holds(without.measured, threshold)
            probability.append(torch.where(thinks, after.within, without.within).double().sum().exp())
            exact.append(torch.where(thinks, after.is_likeliest, without.is_likeliest).all())
            thought.append(thinks)
        points.append(
            Point(
                policy="never" if share == 0 else "always" if share == 1 else f"{rule}:{threshold:.4g}",
                share_thought=float(torch.cat(thought).float().mean()),
                answer_probability=float(torch.stack(probability).mean()),
                exact_match=float(torch.stack(exact).float().mean()),
            )
        )
    return points


def picture(points: dict[str, list[Point]], path: Path) -> None:
    """Draw the curve of each task.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = pyplot("the curve of a sweep")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, curve in points.items():
        axes.plot(
            [100 * point.share_thought for point in curve],
            [100 * point.answer_probability for point in curve],
            marker="o",
            label=name,
        )
    axes.set(xlabel="positions with a thought, %", ylabel="answer probability, %", xlim=(-2, 102))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def pyplot(purpose: str) -> Any:
    """Import matplotlib's pyplot with a backend that needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    need("matplotlib", "plot", purpose).use("Agg")
    import matplotlib.pyplot as plt

    return plt
