"""Whether thoughts matter: what interventions did, with 95 % intervals over positions, and the same in plain words.

The gain of thoughts is split with a control, a thought of filler, which computes as much and says nothing:

    gain = log p(own thought) - log p(no thought)
         = [log p(own) - log p(filler)]  +  [log p(filler) - log p(no thought)]
                    content                          computation

Legend: n positions thought at whose next token is known.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isfinite, nan
from typing import Any

import torch
from torch import Tensor

from quietstar.evaluation.interval import Estimate, bootstrap_ratios, share_of
from quietstar.evaluation.perplexity import EDGES
from quietstar.inspection.interventions import FILLER, GIVEN, REMOVED, TRUNCATED
from quietstar.inspection.schema import interventions_in

FEWEST = 10
"""positions below which nothing is concluded: resampled, few values hardly vary, so their interval is the whole line"""
MOST = 0.9
"""share of the gain by which a shortened thought is said to have most of it"""


@dataclass(frozen=True, slots=True)
class Effects:
    """What one intervention did.

    The figures are None where it could not be done, and where it put every thought in its own place.
    """

    name: str
    label: str
    n: int
    """positions"""
    n_same: int
    """positions at which what was put in the thought's place is the thought itself"""
    delta: Estimate | None
    """change in the true next token's log-probability, nats"""
    kl: Estimate | None
    """nats"""
    flips: Estimate | None
    """share of positions whose likeliest token became another one"""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Positions of like difficulty."""

    by: str
    """base nll (of the token that follows) or base entropy, in nats"""
    low: float
    high: float
    n: int
    gain: Estimate
    reward: Estimate | None
    interventions: list[Effects]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a trace."""

    n_positions: int
    n_thoughts: int
    gain: Estimate | None
    """of the model's own thoughts; None where no thought's next token is known"""
    content: Estimate | None
    """the part that filler loses"""
    computation: Estimate | None
    """the part that filler has as well"""
    content_share: Estimate | None
    """content by gain, as a ratio of means; None unless the whole interval of the gain is above 0"""
    reward: Estimate | None
    """over positions that as many true tokens follow as any: at the end of a text it is a sum of fewer"""
    mixing_weight: Estimate | None
    interventions: list[Effects]
    difficulty: list[Difficulty]
    sentences: list[str]


Figures = dict[str, Tensor]
"""[n] each, in float64; NaN where there is none"""


def summarize(columns: dict[str, list[Any]], labels: dict[str, str]) -> Summary:
    """From a trace's columns, and what its interventions are in words."""
    labels = {name: labels.get(name, name) for name in interventions_in(list(columns))}
    known = [i for i, gain in enumerate(columns["gain"]) if gain is not None]
    figures = _figures(columns, list(labels), known)
    means = _means(figures)
    effects = _effects(figures, means, labels)
    split = any(each.name == FILLER and each.delta is not None for each in effects)
    gain = means["gain"]
    found = Summary(
        n_positions=len(columns["row"]),
        n_thoughts=sum(columns["thought"]),
        gain=gain,
        content=means["content"] if split else None,
        computation=means["computation"] if split else None,
        content_share=_share(figures) if split and gain is not None and _sign(gain) > 0 else None,
        reward=means["reward"],
        mixing_weight=_means({"weight": _numbers(columns["mixing_weight"])})["weight"],
        interventions=effects,
        difficulty=_difficulty(figures, labels),
        sentences=[],
    )
    found.sentences.extend(_sentences(found, changes_nothing=_is_still(figures, effects)))
    return found


def _numbers(values: list[Any]) -> Tensor:
    return torch.tensor([nan if value is None else value for value in values], dtype=torch.float64)


def _figures(columns: dict[str, list[Any]], names: list[str], known: list[int]) -> Figures:
    def of(name: str) -> Tensor:
        return _numbers([columns[name][i] for i in known])

    n_following = _numbers([len(columns["base_logprob"][i]) for i in known])
    is_whole = n_following == n_following.max() if known else n_following > 0
    figures = {
        "gain": of("gain"),
        "reward": of("reward").masked_fill(~is_whole, nan),
        "base nll": _numbers([-columns["base_logprob"][i][0] for i in known]),
        "base entropy": of("base_entropy"),
    }
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
    """The mean of each over the positions that have it, with its 95 % interval."""
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


def _share(figures: Figures) -> Estimate:
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
    """Whether thoughts do nothing at all, and nor does anything in their place."""
    tried = [f"{each.name}_kl" for each in effects if each.delta is not None]
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


# ------------------------------------------------------------------ in plain words


def nats(value: float) -> str:
    """+0.123, -1.20, and never -0.000."""
    text = f"{value:+.3f}" if abs(value) < 1 else f"{value:+.2f}"
    return "0.000" if not float(text) else text


def _with_interval(estimate: Estimate) -> str:
    if not isfinite(estimate.low):
        return f"{nats(estimate.value)} nats on average"
    return f"{nats(estimate.value)} nats (95 % interval {nats(estimate.low)} to {nats(estimate.high)})"


def _sign(estimate: Estimate) -> int:
    """1 or -1 where the whole interval is on that side of 0; else 0."""
    return (estimate.low > 0) - (estimate.high < 0)


def _sentences(found: Summary, *, changes_nothing: bool) -> list[str]:
    if found.gain is None:
        if not found.n_thoughts:
            return ["Nothing was thought: there is nothing to measure."]
        return ["No thought stands before a token that is known: there is nothing to measure."]
    effects = {each.name: each for each in found.interventions if each.delta is not None}
    n = found.gain.n
    over = f"Over {n:,} position{'' if n == 1 else 's'}"
    if changes_nothing:
        others = ", and with any others," if effects.keys() - {REMOVED} else ""
        return [
            f"{over}, nothing that is thought changes anything: without its thoughts{others} the model predicts "
            "exactly the same. The thoughts do not count."
        ]
    verdict = {1: "Thoughts help", -1: "Thoughts do harm", 0: "Whether thoughts help or do harm cannot be told"}
    first = verdict[_sign(found.gain)] if n >= FEWEST else "These are too few positions to tell whether thoughts help"
    said = [
        f"{first}: {over[0].lower()}{over[1:]}, they change the log-probability of the token that really follows by "
        f"{_with_interval(found.gain)}."
    ]
    if found.content is not None and found.computation is not None and found.content.n >= FEWEST:
        said.append(_of_content(found.content, found.computation, found.content_share))
    said += _of_others(effects)
    if shorter := _of_length(found.gain, effects):
        said.append(shorter)
    return said


def _of_content(content: Estimate, computation: Estimate, share: Estimate | None) -> str:
    def worth(estimate: Estimate) -> str:
        verb = {1: "is worth", -1: "does harm:", 0: "makes no difference that can be told from none:"}[_sign(estimate)]
        return f"{verb} {_with_interval(estimate)}"

    said = (
        f"Beside filler in their place, what they say {worth(content)}. "
        f"Beside no thought at all, filler, which is computation alone, {worth(computation)}."
    )
    if _sign(content) > 0 > _sign(computation):
        said += " Filler does harm by itself: so much of what content is worth only makes up for that."
    elif _sign(computation) > 0 > _sign(content):
        said += " Filler would help more: what they say takes away some of what computation is worth."
    elif share is not None:
        said += (
            f" So {_percent(share.value)} of the gain comes from the content of thoughts (95 % interval "
            f"{_percent(share.low)} to {_percent(share.high)}), and {_percent(1 - share.value)} from having more "
            "computation."
        )
    return said


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"


def _of_others(effects: dict[str, Effects]) -> list[str]:
    said = []
    for name, words in (
        ("random", "Random tokens"),
        ("swapped", "Thoughts from other positions"),
        ("shuffled", "The same tokens shuffled"),
        (GIVEN, "The thought that was typed"),
    ):
        each = effects.get(name)
        if each is not None and each.delta is not None and each.flips is not None:
            same = f"; at {each.n_same} of the {each.n} it is the very same thought" if each.n_same else ""
            said.append(
                f"{words} in their place: {_with_interval(each.delta)}; "
                f"the likeliest token is another one at {100 * each.flips.value:.1f} % of the positions{same}."
            )
    return said


def _of_length(gain: Estimate, effects: dict[str, Effects]) -> str:
    cut = [each for name, each in effects.items() if name.startswith(f"{TRUNCATED}_")]
    if _sign(gain) < 1 or not cut:
        return ""
    K = len(cut)
    suffices = [each.delta is not None and each.delta.value >= -(1 - MOST) * gain.value for each in cut]
    shortest = next((tokens for tokens in range(K) if all(suffices[tokens:])), K)
    if shortest == K:
        return f"All of their {K} tokens are needed for {100 * MOST:.0f} % of the gain, on average."
    return f"{shortest} of their {K} tokens are enough for {100 * MOST:.0f} % of the gain, on average."
