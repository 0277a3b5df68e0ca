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

FEWEST = 30
"""positions below which nothing is concluded, and a mean's interval is the whole line: it would be too narrow"""
NEGLIGIBLE = 0.001
"""nats: a gain that surely is smaller is next to nothing, and is not divided up"""
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
    """content by gain, as a ratio of means; None where there is no gain to divide, or a part works against the other"""
    reward: Estimate | None
    mixing_weight: Estimate | None
    interventions: list[Effects]
    difficulty: list[Difficulty]
    is_own: bool
    """whether the model wrote the text: what follows then follows by its own predictions, and no gain is a finding"""
    sentences: list[str]


Figures = dict[str, Tensor]
"""[n] each, in float64; NaN where there is none"""


def summarize(columns: dict[str, list[Any]], labels: dict[str, str], *, is_own: bool = False) -> Summary:
    """From a trace's columns, what its interventions are in words, and whether the text is the model's own."""
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
        reward=means["reward"],
        mixing_weight=_means({"weight": _numbers(columns["mixing_weight"])})["weight"],
        interventions=effects,
        difficulty=_difficulty(figures, labels),
        is_own=is_own,
        sentences=[],
    )
    return replace(found, sentences=_sentences(found, changes_nothing=_is_still(figures, effects)))


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
    """Whether thoughts do nothing at all, and nor does anything in their place."""
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


# ------------------------------------------------------------------ in plain words


def nats(value: float) -> str:
    """+0.123, -1.20, +2.7e-07; 0.000 for nothing only."""
    if not value:
        return "0.000"
    if abs(value) < NEGLIGIBLE or abs(value) >= 1e6:
        return f"{value:+.1e}"
    return f"{value:+.3f}" if abs(value) < 1 else f"{value:+.2f}"


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
        return ["No thought has a gain that is a number: no token with a label follows, or no prediction is finite."]
    effects = {each.name: each for each in found.interventions if each.delta is not None}
    n = found.gain.n
    over = f"{n:,} position{'' if n == 1 else 's'}"
    if changes_nothing:
        others = ", and with any others," if effects.keys() - {REMOVED} else ""
        return [
            f"Over {over}, nothing that is thought changes anything: without its thoughts{others} the model predicts "
            "exactly the same. The thoughts do not count."
        ]
    if found.is_own:
        return _of_own_text(over, effects)
    said = [
        f"{_verdict(found.gain)}: over {over}, they change the log-probability of the token that really follows by "
        f"{_with_interval(found.gain)}."
    ]
    filler = next((each for each in found.interventions if each.name == FILLER), None)
    if filler is not None and filler.n == filler.n_same > 0:
        said.append("Every thought is filler already: what it says cannot be told from its computation.")
    elif filler is not None and found.content is not None and found.computation is not None and n >= FEWEST:
        said.append(_of_content(found.content, found.computation, found.content_share) + _same(filler))
    said += _of_others(found.interventions)
    if shorter := _of_length(found.gain, effects):
        said.append(shorter)
    return said


def _verdict(gain: Estimate) -> str:
    if gain.n < FEWEST:
        return "These are too few positions to tell whether thoughts help"
    if max(abs(gain.low), abs(gain.high)) < NEGLIGIBLE:
        return "Thoughts change next to nothing"
    return {1: "Thoughts help", -1: "Thoughts do harm", 0: "Whether thoughts help or do harm cannot be told"}[
        _sign(gain)
    ]


def _of_own_text(over: str, effects: dict[str, Effects]) -> list[str]:
    said = [
        f"The model wrote this text: each of its {over} follows by the very predictions that are looked at, which "
        "nothing else can beat. So this says how much thoughts change, not whether they help: for that, read a text of "
        "somebody else's."
    ]
    for each in effects.values():
        if each.kl is not None and each.flips is not None and not each.name.startswith(TRUNCATED):
            said.append(
                f"{each.label[0].upper()}{each.label[1:]}: predictions lie {_size(each.kl)} away (KL), and the "
                f"likeliest token is another one at {100 * each.flips.value:.1f} % of the positions."
            )
    return said


def _size(estimate: Estimate) -> str:
    return _with_interval(estimate).replace("+", "")


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
    elif share is not None and share.high - share.low < 1:
        said += (
            f" So {_percent(share.value)} of the gain comes from the content of thoughts (95 % interval "
            f"{_percent(share.low)} to {_percent(share.high)}), and {_percent(1 - share.value)} from having more "
            "computation."
        )
    elif share is not None:
        said += " How the gain is divided between them cannot be told from these positions."
    return said


def _percent(share: float) -> str:
    """Neither part works against the other: no share is below nothing, or above all."""
    return f"{round(100 * min(max(share, 0), 1))} %"


def _same(each: Effects) -> str:
    return f" At {each.n_same:,} of the {each.n:,} positions it is the very same thought." if each.n_same else ""


def _of_others(interventions: list[Effects]) -> list[str]:
    said = []
    words = {
        "random": "Random tokens",
        "swapped": "Thoughts from other positions",
        "shuffled": "The same tokens shuffled",
        GIVEN: "The thought that was typed",
    }
    for name in words:
        each = next((each for each in interventions if each.name == name), None)
        if each is not None and each.name == "swapped" and each.n == each.n_same > 0:
            said.append("Thoughts are the same at every position: there is none from another one to be tried.")
        if each is not None and each.delta is not None and each.flips is not None:
            said.append(
                f"{words[name]} in their place: {_with_interval(each.delta)}; the likeliest token is another one at "
                f"{100 * each.flips.value:.1f} % of the positions.{_same(each)}"
            )
    return said


def _of_length(gain: Estimate, effects: dict[str, Effects]) -> str:
    cut = [each for name, each in effects.items() if name.startswith(f"{TRUNCATED}_")]
    if _sign(gain) < 1 or gain.value < NEGLIGIBLE or not cut:
        return ""
    K = len(cut)
    suffices = [each.delta is not None and each.delta.value >= -(1 - MOST) * gain.value for each in cut]
    shortest = next((n for n in range(K) if all(suffices[n:])), K)
    share = f"for {100 * MOST:.0f} % of the gain, on average."
    if K == 1:
        return f"Their one token is {'not ' if shortest == 0 else ''}needed {share}"
    return (
        f"All of their {K} tokens are needed {share}"
        if shortest == K
        else f"{shortest} of their {K} are enough {share}"
    )
