"""What a summary says, in plain words."""

from math import isfinite

from quietstar.evaluation.interval import Estimate
from quietstar.inspection.findings import FEWEST, NEGLIGIBLE, Effects, Summary
from quietstar.inspection.interventions import FILLER, GIVEN, REMOVED, is_truncated

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


def _with_interval(estimate: Estimate) -> str:
    if not isfinite(estimate.low):
        return f"{nats(estimate.value)} nats on average"
    return f"{nats(estimate.value)} nats (95 % interval {nats(estimate.low)} to {nats(estimate.high)})"


def sentences(found: Summary, *, changes_nothing: bool) -> list[str]:
    """What follows from a summary, and no more than that.

    Args:
        found: all of it but the sentences.
        changes_nothing: whether neither thoughts nor anything in their place made any difference, to the last bit.
    """
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
    elif filler is not None and found.content and found.computation and found.content.n >= FEWEST:
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
        f"The model wrote this text: it chose what follows at {over} by the very predictions that are judged, so other "
        "ones do worse on average, whatever thoughts are worth. This says how much thoughts change, not whether they "
        "help: for that, read a text of somebody else's."
    ]
    for each in effects.values():
        if each.kl is not None and each.flips is not None and not is_truncated(each.name):
            said.append(
                f"{each.label[0].upper()}{each.label[1:]}: predictions lie {_size(each.kl)} away (KL), and the "
                f"likeliest token is another one at {100 * each.flips.value:.1f} % of the positions."
            )
    return said


def _size(estimate: Estimate) -> str:
    return _with_interval(estimate).replace("+", "")


def _sign(estimate: Estimate) -> int:
    """1 or -1 where the whole interval is on that side of 0; else 0."""
    return (estimate.low > 0) - (estimate.high < 0)


def _of_content(content: Estimate, computation: Estimate, share: Estimate | None) -> str:
    def worth(estimate: Estimate) -> str:
        verb = {1: "is worth", -1: "does harm:", 0: "makes no difference that can be told from none:"}[_sign(estimate)]
        return f"{verb} {_with_interval(estimate)}"

    said = (
        f"Beside filler in their place, what they say {worth(content)}. "
        f"Beside no thought at all, filler, which is computation alone, {worth(computation)}."
    )
    if _sign(content) > 0 > _sign(computation):
        loss = plain(abs(computation.value))
        said += f" Filler does harm by itself: {loss} nats of what content is worth make up for that."
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
    cut = [each for name, each in effects.items() if is_truncated(name)]
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
