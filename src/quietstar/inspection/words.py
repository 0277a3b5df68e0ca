"""Numbers in words, and what stands behind the verdict on a trace."""

from math import isfinite
from typing import TypeGuard

from quietstar.inspection.findings import FEWEST, NEGLIGIBLE, Effects, Summary
from quietstar.inspection.interventions import FILLER, GIVEN, is_truncated
from quietstar.reporting.interval import Estimate

MOST = 0.9
"""share of the gain by which a shortened thought is said to have most of it"""


def nats(value: float) -> str:
    """+0.123, -1.20, +2.7e-07; 0.000 for nothing only."""
    if not value:
        return "0.000"
    if abs(value) < NEGLIGIBLE or abs(value) >= 1e6:
        return f"{value:+.1e}"
    return f"{value:+.3f}" if abs(value) < 1 else f"{value:+.2f}"


def plain(value: float) -> str:
    """The same without a plus: of what is never below 0."""
    return nats(value).removeprefix("+")


def with_interval(estimate: Estimate) -> str:
    """+0.123 nats, with its 95 % interval where it has one."""
    if not isfinite(estimate.low):
        return f"{nats(estimate.value)} nats on average"
    return f"{nats(estimate.value)} nats (95 % interval {nats(estimate.low)} to {nats(estimate.high)})"


def details(found: Summary) -> list[str]:
    """What stands behind a verdict: what interventions did, what training did, how much of a thought is needed."""
    assert found.gain is not None
    effects = {each.name: each for each in found.interventions if each.delta is not None}
    said = []
    filler = next((each for each in found.interventions if each.name == FILLER), None)
    if filler is not None and filler.n == filler.n_same > 0:
        said.append("Every thought is filler already: what it says cannot be told from its computation.")
    elif filler is not None and is_known(found.content) and is_known(found.computation):
        said.append(_of_content(found.content, found.computation, found.content_share) + _same(filler))
    said.append(_of_training(found))
    said += _of_others(found.interventions)
    said.append(_of_length(found.gain, effects))
    return [sentence for sentence in said if sentence]


def is_known(estimate: Estimate | None) -> TypeGuard[Estimate]:
    """Whether there are enough positions to conclude something from a mean."""
    return estimate is not None and estimate.n >= FEWEST


def _of_training(found: Summary) -> str:
    if not is_known(found.gain):
        return ""
    if not (is_known(found.nll_before) and is_known(found.over_before) and is_known(found.base_over_before)):
        return (
            "Whether the model predicts this text better than before it was trained is not known here: give the plain "
            "model that it was trained from (--before MODEL; before= in Python)."
        )
    before = found.nll_before.value
    without, with_thoughts = before - found.base_over_before.value, before - found.over_before.value
    return (
        f"Before training, the nll of these tokens was {plain(before)} nats. It is now {plain(without)} without "
        f"thoughts and {plain(with_thoughts)} with them; without thoughts, the log-probability has changed by "
        f"{with_interval(found.base_over_before)}."
    )


def sign(estimate: Estimate) -> int:
    """1 or -1 where the whole interval is on that side of 0; else 0."""
    return (estimate.low > 0) - (estimate.high < 0)


def _of_content(content: Estimate, computation: Estimate, share: Estimate | None) -> str:
    def worth(estimate: Estimate) -> str:
        verb = {1: "is worth", -1: "does harm:", 0: "makes no difference that can be told from none:"}[sign(estimate)]
        return f"{verb} {with_interval(estimate)}"

    said = (
        f"Beside filler in their place, what they say {worth(content)}. "
        f"Beside no thought at all, filler, which is computation alone, {worth(computation)}."
    )
    if sign(content) > 0 > sign(computation):
        loss = plain(abs(computation.value))
        said += f" Filler does harm by itself: {loss} nats of what content is worth make up for that."
    elif sign(computation) > 0 > sign(content):
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
                f"{words[name]} in their place: {with_interval(each.delta)}; the likeliest token is another one at "
                f"{100 * each.flips.value:.1f} % of the positions.{_same(each)}"
            )
    return said


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
