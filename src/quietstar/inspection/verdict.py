"""What a summary says, the whole verdict first: thoughts beside none, beside filler, and beside the untrained model."""

from quietstar.inspection.findings import NEGLIGIBLE, Effects, Summary
from quietstar.inspection.interventions import FILLER, REMOVED, is_truncated
from quietstar.inspection.words import details, is_known, plain, sign, with_interval
from quietstar.reporting.interval import Estimate


def sentences(found: Summary, *, changes_nothing: bool) -> list[str]:
    """What follows from a summary, and no more than that; the verdict, one or two sentences, is the first element.

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
        said = (
            f"Over {over}, nothing that is thought changes anything: without its thoughts{others} the model predicts "
            "exactly the same. The thoughts do not count."
        )
        if not found.is_own and is_known(found.over_before):
            said += f" It predicts this text {_how(found.over_before)} ({with_interval(found.over_before)})."
        return [said]
    if found.is_own:
        return _of_own_text(over, effects)
    if not is_known(found.gain):
        said = "These are too few positions to tell whether thoughts help: "
        said += f"over {over}, they change the log-probability of the token that really follows by "
        return [f"{said}{with_interval(found.gain)}.", *details(found)]
    return [f"{_in_words(found, found.gain)}. {_in_numbers(found, found.gain, over)}.", *details(found)]


def _in_words(found: Summary, gain: Estimate) -> str:
    """What may be said first: not that thoughts help where filler does as well, or training did more harm."""
    help, over_before = _side(gain), found.over_before
    if not is_known(over_before):
        return _beside_none(found, gain)
    if help > 0 >= _side(over_before):
        return f"Even with thoughts, the model predicts this text {_how(over_before)}: {_made_up(found, gain)}"
    said = f"{_beside_none(found, gain)}; with them, the model predicts this text {_how(over_before)}"
    if not (lost := _lost(found)):
        return said
    if help <= 0:
        return f"{said}: the base pass alone has lost {plain(lost)} nats"
    return (
        f"{said}, but {plain(lost)} of the {plain(gain.value)} nats that they give only make up for what the base pass "
        "has lost"
    )


def _beside_none(found: Summary, gain: Estimate) -> str:
    than_filler = _than_filler(found)
    if _is_next_to_nothing(gain):
        return f"Thoughts change next to nothing{than_filler}"
    match _side(gain):
        case 1 if is_known(found.content) and _side(found.content) <= 0:
            return f"Thoughts help{than_filler.removeprefix(',')}"
        case 1:
            return f"Thoughts help{than_filler}"
        case -1:
            return f"Thoughts do harm{than_filler}"
    return f"Whether thoughts help or do harm cannot be told{than_filler}"


_THAN_FILLER = {
    1: {1: ", and more than", 0: ", no more than", -1: ", less than"},
    0: {1: ", but they do better than", 0: ", nor whether they do better than", -1: ", but they do worse than"},
    -1: {1: ", but less than", 0: ", no less than", -1: ", and more than"},
}
"""by what thoughts do beside none, and then by what they do beside filler: 1 for good, -1 for bad"""


def _than_filler(found: Summary) -> str:
    assert found.gain is not None
    if _are_filler(found):
        return ", and every thought is filler"
    if not is_known(found.content):
        return " (filler in their place was not measured)"
    help, more = _side(found.gain), _side(found.content)
    if not more and _is_next_to_nothing(found.gain):
        return ", no more than filler of the same length"
    untold = ", as far as can be told" if help and not more else ""
    return f"{_THAN_FILLER[help][more]} filler of the same length{untold}"


def _are_filler(found: Summary) -> bool:
    return any(each.name == FILLER and each.n == each.n_same > 0 for each in found.interventions)


def _how(over_before: Estimate) -> str:
    if _is_next_to_nothing(over_before):
        return "as it did before it was trained"
    how = {1: "better", 0: "not measurably better", -1: "worse"}[_side(over_before)]
    return f"{how} than before it was trained"


def _lost(found: Summary) -> float:
    """Nats that training has cost the base pass; 0 where it has not become worse, or that cannot be told."""
    drift = found.base_over_before
    return -drift.value if is_known(drift) and _side(drift) < 0 else 0.0


def _made_up(found: Summary, gain: Estimate) -> str:
    """What thoughts do in a model that is no better with them than before training."""
    lost = _lost(found)
    if gain.value < lost:
        said = f"they make up for {plain(gain.value)} of the {plain(lost)} nats that the base pass has lost"
    else:
        said = f"they only make up for the {plain(lost)} nats that the base pass has lost" if lost else "they help it"
    if _are_filler(found) or not is_known(found.content):
        return f"{said}{_than_filler(found)}"
    filler = {1: "does not do as well", 0: "does as well, as far as can be told", -1: "does better"}
    return f"{said}, and filler of the same length {filler[_side(found.content)]}"


def _in_numbers(found: Summary, gain: Estimate, over: str) -> str:
    said = f"Over {over}, thoughts change the log-probability of the token that really follows by {with_interval(gain)}"
    others = {"with filler": found.content, "before training": found.over_before}
    more = [f"by {with_interval(of)} from that {other}" for other, of in others.items() if is_known(of)]
    return f"{said}; it differs {' and '.join(more)}" if more else said


def _side(estimate: Estimate) -> int:
    """1 or -1 where the whole interval is on that side of 0 and not next to it; else 0."""
    return 0 if _is_next_to_nothing(estimate) else sign(estimate)


def _is_next_to_nothing(estimate: Estimate) -> bool:
    return max(abs(estimate.low), abs(estimate.high)) < NEGLIGIBLE


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
    return with_interval(estimate).replace("+", "")
