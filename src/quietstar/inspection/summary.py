"""The summary of a trace: effects of thoughts and interventions, with 95 % intervals over positions.

The gain of thoughts is split by a control, a thought of filler tokens, which has the same computation and no content:

    gain = log p(own thought) - log p(no thought)
         = [log p(own) - log p(filler)]  +  [log p(filler) - log p(no thought)]
                    content                          computation

Thoughts may only compensate for what the base pass lost in training: the model before training is a second control.

    log p(own thought) - log p(before) = gain + [log p(no thought) - log p(before)]

Legend: n positions with a thought and a known next token.
"""

from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from quietstar.evaluation.perplexity import EDGES
from quietstar.inspection.findings import FEWEST, NEGLIGIBLE, Difficulty, Effects, Summary
from quietstar.inspection.interventions import FILLER
from quietstar.inspection.schema import interventions_in
from quietstar.inspection.verdict import sentences
from quietstar.reporting.interval import Estimate, bootstrap_ratios, share_of

Figures = dict[str, Tensor]
"""figures by name, [n] each in float64, NaN where missing"""


def summarize(columns: dict[str, list[Any]], labels: dict[str, str], *, is_own: bool = False) -> Summary:
    """Summarize a trace; `is_own` says whether the model generated its text."""
    labels = {name: labels.get(name, name) for name in interventions_in(list(columns))}
    known = [i for i, gain in enumerate(columns["gain"]) if gain is not None]
    figures = _figures(columns, list(labels), known)
    means = _means(figures)
    effects = _effects(figures, means, labels)
    split = not is_own and any(each.name == FILLER and each.delta is not None for each in effects)
    content, computation = (means[part] if split else None for part in ("content", "computation"))
    gain = means["gain"]
    found = Summary(
        n_positions=len(columns["row"]),
        n_thoughts=sum(columns["thought"]),
        gain=gain,
        content=content,
        computation=computation,
        content_share=_content_share(figures) if _can_be_divided(gain, content, computation) else None,
        nll_before=means["nll before"],
        over_before=means["over before"],
        base_over_before=means["base over before"],
        reward=means["reward"],
        mixing_weight=_means({"weight": _numbers(columns["mixing_weight"])})["weight"],
        interventions=effects,
        difficulty=_difficulty(figures, labels),
        is_own=is_own,
        sentences=[],
    )
    return replace(found, sentences=sentences(found, changes_nothing=_is_still(figures, effects)))


def _numbers(values: list[Any]) -> Tensor:
    return torch.tensor([nan if value is None else value for value in values], dtype=torch.float64)


def _figures(columns: dict[str, list[Any]], names: list[str], known: list[int]) -> Figures:
    def of(name: str) -> Tensor:
        return _numbers([columns[name][i] for i in known])

    figures = {
        "gain": of("gain"),
        "reward": of("reward"),
        "base nll": _numbers([-columns["base_logprob"][i][0] for i in known]),
        "base entropy": of("base_entropy"),
        "nll before": -of("before_logprob"),
    }
    figures["base over before"] = figures["nll before"] - figures["base nll"]
    figures["over before"] = figures["gain"] + figures["base over before"]
    for name in names:
        figures |= {f"{name}_{effect}": of(f"{name}_{effect}") for effect in ("delta", "kl", "flips")}
        figures[f"{name}_same"] = _numbers(
            [columns[f"{name}_thought_ids"][i] == columns["thought_ids"][i] for i in known]
        )
    if FILLER in names:
        figures["content"] = -figures[f"{FILLER}_delta"]
        figures["computation"] = figures["gain"] + figures[f"{FILLER}_delta"]
    return figures


def _means(figures: Figures) -> dict[str, Estimate | None]:
    """Return the mean of each figure over the positions that have it, with its 95 % interval."""
    values = torch.stack(list(figures.values()), dim=1)
    n_known = (~values.isnan()).sum(0).tolist()
    if not any(n_known):
        return dict.fromkeys(figures)
    estimates = bootstrap_ratios(values.nan_to_num(nan=0.0), ~values.isnan())
    return {
        name: _of_enough(replace(estimate, n=n)) if n else None
        for name, estimate, n in zip(figures, estimates, n_known, strict=True)
    }


def _of_enough(estimate: Estimate) -> Estimate:
    return estimate if estimate.n >= FEWEST else replace(estimate, low=-inf, high=inf)


def _can_be_divided(gain: Estimate | None, content: Estimate | None, computation: Estimate | None) -> bool:
    if gain is None or content is None or computation is None or content.n < gain.n:
        return False
    return gain.low > 0 and gain.value >= NEGLIGIBLE and content.value >= 0 and computation.value >= 0


def _content_share(figures: Figures) -> Estimate:
    there = ~figures["content"].isnan()
    content, gain = (figures[name][there][:, None] for name in ("content", "gain"))
    return bootstrap_ratios(content, gain)[0]


def _effects(figures: Figures, means: dict[str, Estimate | None], labels: dict[str, str]) -> list[Effects]:
    effects = []
    for name, label in labels.items():
        tried = ~figures[f"{name}_delta"].isnan()
        n, n_same = int(tried.sum()), int(figures[f"{name}_same"][tried].sum())
        delta, kl, flips = means[f"{name}_delta"], means[f"{name}_kl"], None
        if n == n_same:
            delta = kl = None
        elif len(flipped := figures[f"{name}_flips"][tried]):
            flips = share_of(flipped > 0)
        effects.append(Effects(name, label, n, n_same, delta, kl, flips))
    return effects


def _is_still(figures: Figures, effects: list[Effects]) -> bool:
    """Whether neither thoughts nor interventions have any effect."""
    tried = [f"{each.name}_{what}" for each in effects if each.delta is not None for what in ("kl", "delta")]
    return bool(tried) and not any(figures[name].any() for name in ("gain", *tried))


def _difficulty(figures: Figures, labels: dict[str, str]) -> list[Difficulty]:
    found = []
    for by in ("base nll", "base entropy"):
        for low, high in pairwise(EDGES):
            inside = (figures[by] >= low) & (figures[by] < high)
            some = {name: values[inside] for name, values in figures.items()}
            means = _means(some)
            if (gain := means["gain"]) is not None:
                effects = _effects(some, means, labels)
                found.append(Difficulty(by, low, high, int(inside.sum()), gain, means["reward"], effects))
    return found
