"""Whether thoughts matter: what interventions did, with 95 % intervals over positions, and the same in plain words.

The gain of thoughts is split with a control, a thought of filler, which computes as much and says nothing:

    gain = log p(own thought) - log p(no thought)
         = [log p(own) - log p(filler)]  +  [log p(filler) - log p(no thought)]
                    content                          computation
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from quietstar.evaluation.interval import Estimate, bootstrap, share_of
from quietstar.evaluation.perplexity import EDGES
from quietstar.inspection.interventions import FILLER, GIVEN, REMOVED, TRUNCATED
from quietstar.inspection.schema import interventions_in

FEWEST = 10
"""positions below which nothing is concluded: resampled, few values hardly vary"""
MOST = 0.9
"""share of the gain by which a shortened thought is said to have most of it"""


@dataclass(frozen=True, slots=True)
class Effects:
    """What one intervention did, over the positions thought at whose next token is known."""

    name: str
    label: str
    n: int
    delta: Estimate | None
    """change in the true next token's log-probability, nats"""
    kl: Estimate | None
    """nats"""
    flips: Estimate | None
    """share of positions whose likeliest token became another one"""
    n_same: int = 0
    """positions at which what was put in its place is the thought itself"""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Positions of like difficulty."""

    by: str
    """base nll (of the token that follows) or base entropy, in nats"""
    low: float
    high: float
    n: int
    gain: Estimate
    reward: Estimate
    delta: dict[str, float]
    """mean change by each intervention"""


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
    reward: Estimate | None
    mixing_weight: Estimate | None
    interventions: list[Effects]
    difficulty: list[Difficulty]
    sentences: list[str]


def summarize(columns: dict[str, list[Any]], labels: dict[str, str]) -> Summary:
    """From a trace's columns, and what its interventions are in words."""
    names = interventions_in(list(columns))
    known = [i for i, gain in enumerate(columns["gain"]) if gain is not None]

    def of(name: str) -> Tensor:
        return torch.tensor([columns[name][i] for i in known], dtype=torch.float64)

    gain = of("gain")
    delta = {name: of(f"{name}_delta") for name in names if not _is_absent(columns, name, known)}
    effects = []
    for name in names:
        there = name in delta and len(known) > 0
        effects.append(
            Effects(
                name=name,
                label=labels.get(name, name),
                n=len(known) if there else 0,
                delta=bootstrap(delta[name]) if there else None,
                kl=bootstrap(of(f"{name}_kl")) if there else None,
                flips=share_of(of(f"{name}_flips") > 0) if there else None,
                n_same=sum(columns[f"{name}_thought_ids"][i] == columns["thought_ids"][i] for i in known),
            )
        )
    split = known and FILLER in delta
    weights = torch.tensor([w for w in columns["mixing_weight"] if w is not None], dtype=torch.float64)
    found = Summary(
        n_positions=len(columns["row"]),
        n_thoughts=sum(columns["thought"]),
        gain=bootstrap(gain) if known else None,
        content=bootstrap(-delta[FILLER]) if split else None,
        computation=bootstrap(gain + delta[FILLER]) if split else None,
        reward=bootstrap(of("reward")) if known else None,
        mixing_weight=bootstrap(weights) if len(weights) else None,
        interventions=effects,
        difficulty=_difficulty(columns, known, gain, of("reward"), delta) if known else [],
        sentences=[],
    )
    found.sentences.extend(_sentences(found))
    return found


def _is_absent(columns: dict[str, list[Any]], name: str, known: list[int]) -> bool:
    return any(columns[f"{name}_delta"][i] is None for i in known)


def _difficulty(
    columns: dict[str, list[Any]], known: list[int], gain: Tensor, reward: Tensor, delta: dict[str, Tensor]
) -> list[Difficulty]:
    base_nll = torch.tensor([-columns["base_logprob"][i][0] for i in known], dtype=torch.float64)
    base_entropy = torch.tensor([columns["base_entropy"][i] for i in known], dtype=torch.float64)
    found = []
    for by, of in (("base nll", base_nll), ("base entropy", base_entropy)):
        for low, high in pairwise(EDGES):
            inside = (of >= low) & (of < high)
            if inside.any():
                means = {name: float(values[inside].mean()) for name, values in delta.items()}
                of_gain, of_reward = bootstrap(gain[inside]), bootstrap(reward[inside])
                found.append(Difficulty(by, low, high, int(inside.sum()), of_gain, of_reward, means))
    return found


# ------------------------------------------------------------------ in plain words


def nats(value: float) -> str:
    """+0.123, -1.20, and never -0.000."""
    text = f"{value:+.3f}" if abs(value) < 1 else f"{value:+.2f}"
    return "0.000" if not float(text) else text


def _with_interval(estimate: Estimate) -> str:
    return f"{nats(estimate.value)} nats (95 % interval {nats(estimate.low)} to {nats(estimate.high)})"


def _sign(estimate: Estimate) -> int:
    """1 or -1 where the whole interval is on that side of 0, and not of a few positions only; else 0."""
    return 0 if estimate.n < FEWEST else (estimate.low > 0) - (estimate.high < 0)


def _sentences(found: Summary) -> list[str]:
    if found.gain is None:
        if not found.n_thoughts:
            return ["Nothing was thought: there is nothing to measure."]
        return ["No thought stands before a token that is known: there is nothing to measure."]
    effects = {each.name: each for each in found.interventions if each.delta is not None and each.kl is not None}
    n = found.gain.n
    over = f"Over {n:,} position{'' if n == 1 else 's'}"
    tried = [each for each in effects.values() if each.n_same < each.n]
    if tried and found.gain == _still(n) and all(each.kl and each.kl.high == 0 for each in tried):
        others = ", and with any others," if any(each.name != REMOVED for each in tried) else ""
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
    filler = effects.get(FILLER)
    if found.content is not None and found.computation is not None and filler is not None and filler.n_same < filler.n:
        said.append(_of_content(found.content, found.computation))
    said += _of_others(effects)
    if shorter := _of_length(found.gain, effects):
        said.append(shorter)
    return said


def _still(n: int) -> Estimate:
    return Estimate(value=0.0, low=0.0, high=0.0, n=n)


def _of_content(content: Estimate, computation: Estimate) -> str:
    def worth(estimate: Estimate) -> str:
        verb = {1: "is worth", -1: "does harm:", 0: "makes no difference that can be told from none:"}[_sign(estimate)]
        return f"{verb} {_with_interval(estimate)}"

    said = (
        f"Beside filler in their place, what they say {worth(content)}. "
        f"Beside no thought at all, filler, which is computation alone, {worth(computation)}."
    )
    if _sign(content) > 0 > _sign(computation):
        said += " Filler does harm by itself: so much of what content is worth only makes up for that."
    return said


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
            if each.n_same == each.n:
                continue  # nothing was changed
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
