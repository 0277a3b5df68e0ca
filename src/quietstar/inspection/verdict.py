"""The sentences of a summary, verdict first: thoughts compared with none, with filler, and with the untrained model."""

from quietstar.inspection.details import details, is_known, plain, sign, with_interval
from quietstar.inspection.findings import NEGLIGIBLE, Effects, Summary
from quietstar.inspection.interventions import FILLER, REMOVED, is_truncated
from quietstar.reporting.interval import Estimate


def sentences(found: Summary, *, changes_nothing: bool) -> list[str]:
    """Return the conclusions from a summary; the first element is the verdict, in one or two sentences.

    `changes_nothing`: neither thoughts nor interventions made any difference, to the last bit.
    """
    if found.gain is None:
        if not found.n_thoughts:
            return ["There are no thoughts, so there is nothing to measure."]
        return ["No thought has a finite gain: no token with a label follows, or no prediction is finite."]
    effects = {each.name: each for each in found.interventions if each.delta is not None}
    n = found.gain.n
    over = f"{n:,} position{'' if n == 1 else 's'}"
    if changes_nothing:
        others = ", or with other thoughts," if effects.keys() - {REMOVED} else ""
        sentence = f"Over {over}, thoughts have no effect: without them{others} the model predicts exactly the same."
        if not found.is_own and is_known(found.over_before):
            sentence += f" It predicts this text {_how(found.over_before)} ({with_interval(found.over_before)})."
        return [sentence]
    if found.is_own:
        return _of_own_text(over, effects)
    if not is_known(found.gain):
        sentence = (
            f"These are too few positions to tell whether thoughts help: over {over}, they change the log-probability "
            f"of the true next token by {with_interval(found.gain)}."
        )
        return [sentence, *details(found)]
    return [f"{_in_words(found, found.gain)}. {_in_numbers(found, found.gain, over)}.", *details(found)]


def _in_words(found: Summary, gain: Estimate) -> str:
    """Return the verdict; it does not claim that thoughts help if filler does as well, or if training did more harm."""
    help, over_before = _side(gain), found.over_before
    if not is_known(over_before):
        return _over_none(found, gain)
    if help > 0 >= _side(over_before):
        return f"Even with thoughts, the model predicts this text {_how(over_before)}: {_made_up(found, gain)}"
    verdict = f"{_over_none(found, gain)}; with them, the model predicts this text {_how(over_before)}"
    if not (lost := _lost(found)):
        return verdict
    if help <= 0:
        return f"{verdict}: the base pass alone has lost {plain(lost)} nats"
    return (
        f"{verdict}, but {plain(lost)} of their gain of {plain(gain.value)} nats only make up for what the base pass "
        "has lost"
    )


def _over_none(found: Summary, gain: Estimate) -> str:
    than_filler = _than_filler(found)
    if _is_negligible(gain):
        return f"Thoughts change almost nothing{than_filler}"
    match _side(gain):
        case 1 if is_known(found.content) and _side(found.content) <= 0:
            return f"Thoughts help{than_filler.removeprefix(',')}"
        case 1:
            return f"Thoughts help{than_filler}"
        case -1:
            return f"Thoughts hurt{than_filler}"
    return f"Thoughts neither help nor hurt measurably{than_filler}"


_THAN_FILLER = {
    1: {1: ", and more than", 0: ", no more than", -1: ", less than"},
    0: {1: ", but they do better than", 0: ", nor do they do better than", -1: ", but they do worse than"},
    -1: {1: ", but less than", 0: ", as much as", -1: ", and more than"},
}
"""wording by the sign of the effect of thoughts over none, then over filler"""


def _than_filler(found: Summary) -> str:
    assert found.gain is not None
    if _are_filler(found):
        return ", and every thought is filler"
    if not is_known(found.content):
        return " (filler in their place was not measured)"
    help, more = _side(found.gain), _side(found.content)
    if not more and _is_negligible(found.gain):
        return ", no more than filler of the same length"
    unclear = ", as far as can be measured" if help and not more else ""
    return f"{_THAN_FILLER[help][more]} filler of the same length{unclear}"


def _are_filler(found: Summary) -> bool:
    return any(each.name == FILLER and each.n == each.n_same > 0 for each in found.interventions)


def _how(over_before: Estimate) -> str:
    if _is_negligible(over_before):
        return "as well as before training"
    how = {1: "better", 0: "not measurably better", -1: "worse"}[_side(over_before)]
    return f"{how} than before training"


def _lost(found: Summary) -> float:
    """Return the nats that the base pass lost in training; 0 if it did not measurably become worse."""
    drift = found.base_over_before
    return -drift.value if is_known(drift) and _side(drift) < 0 else 0.0


def _made_up(found: Summary, gain: Estimate) -> str:
    """Return the effect of thoughts in a model that, even with them, is not better than before training."""
    lost = _lost(found)
    if gain.value < lost:
        effect = f"they make up for {plain(gain.value)} of the {plain(lost)} nats that the base pass has lost"
    else:
        effect = f"they only make up for the {plain(lost)} nats that the base pass has lost" if lost else "they help it"
    if _are_filler(found) or not is_known(found.content):
        return f"{effect}{_than_filler(found)}"
    filler = {1: "does not do as well", 0: "does as well, as far as can be measured", -1: "does better"}
    return f"{effect}, and filler of the same length {filler[_side(found.content)]}"


def _in_numbers(found: Summary, gain: Estimate, over: str) -> str:
    change = f"Over {over}, thoughts change the log-probability of the true next token by {with_interval(gain)}"
    others = {"filler": found.content, "before training": found.over_before}
    more = [f"by {with_interval(mean)} compared with {other}" for other, mean in others.items() if is_known(mean)]
    return " and ".join([", ".join([f"{change} compared with no thought", *more[:-1]]), more[-1]]) if more else change


def _side(estimate: Estimate) -> int:
    """Return 1 or -1 if the whole interval is on that side of 0 and not negligible, otherwise 0."""
    return 0 if _is_negligible(estimate) else sign(estimate)


def _is_negligible(estimate: Estimate) -> bool:
    return max(abs(estimate.low), abs(estimate.high)) < NEGLIGIBLE


def _of_own_text(over: str, effects: dict[str, Effects]) -> list[str]:
    lines = [
        f"The model generated this text: at {over} it chose the next token by the same predictions that are compared "
        "here, so others do worse on average, whatever thoughts are worth. This measures how much thoughts change, not "
        "whether they help; to measure that, use a text that the model did not write."
    ]
    for each in effects.values():
        if each.kl is not None and each.flips is not None and not is_truncated(each.name):
            lines.append(
                f"{each.label[0].upper()}{each.label[1:]}: predictions change by {_size(each.kl)} (KL), and the "
                f"likeliest token changes at {100 * each.flips.value:.1f} % of the positions."
            )
    return lines


def _size(estimate: Estimate) -> str:
    return with_interval(estimate).replace("+", "")
