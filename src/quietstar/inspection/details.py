"""Formatted numbers, and the sentences after the verdict on a trace."""

from math import isfinite
from typing import TypeGuard

from quietstar.inspection.findings import FEWEST, NEGLIGIBLE, Effects, Summary
from quietstar.inspection.interventions import FILLER, GIVEN, is_truncated
from quietstar.reporting.interval import Estimate

MOST = 0.9
"""share of the gain that a truncated thought needs to count as long enough"""


def nats(value: float) -> str:
    """Format a number: +0.123, -1.20, +0.0005, +2.7e-07, and 0.000 for exactly 0."""
    if not value:
        return "0.000"
    if abs(value) < 5e-5 or abs(value) >= 1e6:
        return f"{value:+.1e}"
    if abs(value) < NEGLIGIBLE:
        return f"{value:+.4f}"
    return f"{value:+.3f}" if abs(value) < 1 else f"{value:+.2f}"


def plain(value: float) -> str:
    """Format a number that is never negative, without a plus."""
    return nats(value).removeprefix("+")


def with_interval(estimate: Estimate) -> str:
    """Format a mean in nats, with its 95 % interval if it has one."""
    if not isfinite(estimate.low):
        return f"{nats(estimate.value)} nats on average"
    return f"{nats(estimate.value)} nats (95 % interval {nats(estimate.low)} to {nats(estimate.high)})"


def details(found: Summary) -> list[str]:
    """Return the sentences behind a verdict: effects of interventions and of training, and the length needed."""
    assert found.gain is not None
    effects = {each.name: each for each in found.interventions if each.delta is not None}
    lines = []
    filler = next((each for each in found.interventions if each.name == FILLER), None)
    if filler is not None and filler.n == filler.n_same > 0:
        lines.append("Every thought is filler already, so content and computation cannot be separated.")
    elif filler is not None and is_known(found.content) and is_known(found.computation):
        lines.append(_of_content(found.content, found.computation, found.content_share) + _same(filler))
    lines.append(_of_training(found))
    lines += _of_others(found.interventions)
    lines.append(_of_length(found.gain, effects))
    return [line for line in lines if line]


def is_known(estimate: Estimate | None) -> TypeGuard[Estimate]:
    """Whether a mean is over enough positions for a conclusion."""
    return estimate is not None and estimate.n >= FEWEST


def _of_training(found: Summary) -> str:
    if not is_known(found.gain):
        return ""
    if not (is_known(found.nll_before) and is_known(found.over_before) and is_known(found.base_over_before)):
        return (
            "It is not known whether the model predicts this text better than before training: give the plain model "
            "that it was trained from (--before MODEL; before= in Python)."
        )
    before = found.nll_before.value
    without, with_thoughts = before - found.base_over_before.value, before - found.over_before.value
    return (
        f"Before training, the nll of these tokens was {plain(before)} nats. It is now {plain(without)} without "
        f"thoughts and {plain(with_thoughts)} with them; without thoughts, the log-probability has changed by "
        f"{with_interval(found.base_over_before)}."
    )


def sign(estimate: Estimate) -> int:
    """Return 1 or -1 if the whole interval is on that side of 0, otherwise 0."""
    return (estimate.low > 0) - (estimate.high < 0)


def _of_content(content: Estimate, computation: Estimate, share: Estimate | None) -> str:
    def worth(estimate: Estimate) -> str:
        verb = {1: "is worth", -1: "hurts:", 0: "makes no measurable difference:"}[sign(estimate)]
        return f"{verb} {with_interval(estimate)}"

    text = (
        f"Compared with filler, the content of thoughts {worth(content)}. "
        f"Compared with no thought, filler, which is computation only, {worth(computation)}."
    )
    if sign(content) > 0 > sign(computation):
        text += f" Filler by itself hurts; content first makes up for these {plain(abs(computation.value))} nats."
    elif sign(computation) > 0 > sign(content):
        text += " Filler would help more: content takes away some of what computation is worth."
    elif share is not None and share.high - share.low < 1:
        text += (
            f" So {_percent(share.value)} of the gain comes from the content of thoughts (95 % interval "
            f"{_percent(share.low)} to {_percent(share.high)}), and {_percent(1 - share.value)} from having more "
            "computation."
        )
    elif share is not None:
        text += " These positions are too few to tell how the gain divides between them."
    return text


def _percent(share: float) -> str:
    """Format a share, clipped to 0 to 100 %: neither part works against the other here."""
    return f"{round(100 * min(max(share, 0), 1))} %"


def _same(each: Effects) -> str:
    return f" At {each.n_same:,} of the {each.n:,} positions it equals the thought." if each.n_same else ""


def _of_others(interventions: list[Effects]) -> list[str]:
    lines = []
    names = {
        "random": "Random tokens",
        "swapped": "Thoughts from other positions",
        "shuffled": "The same tokens shuffled",
        GIVEN: "Your thought",
    }
    by_name = {each.name: each for each in interventions}
    for name, label in names.items():
        each = by_name.get(name)
        if each is not None and each.name == "swapped" and each.n == each.n_same > 0:
            lines.append("Thoughts are the same at every position, so swapping them changes nothing.")
        if each is not None and each.delta is not None and each.flips is not None:
            lines.append(
                f"{label} in their place: {with_interval(each.delta)}; the likeliest token changes at "
                f"{100 * each.flips.value:.1f} % of the positions.{_same(each)}"
            )
    return lines


def _of_length(gain: Estimate, effects: dict[str, Effects]) -> str:
    cut = [each for name, each in effects.items() if is_truncated(name)]
    if sign(gain) < 1 or gain.value < NEGLIGIBLE or not cut:
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
