"""The first sentence of a summary is the whole verdict, for constructed figures of every kind."""

import re
from itertools import product

import pytest

from quietstar.inspection.findings import Summary
from quietstar.inspection.summary import summarize
from tests.inspection.test_summary import columns

UNSURE = 0.05
"""nats: a mean this near to 0 is not significant at the spread of the values of `spread`"""


def spread(mean: float, n: int) -> list[float]:
    """Return n values with that mean, at most 0.4 apart."""
    return [mean + 0.2 * (-1) ** i for i in range(n)]


def found(gain: float, content: float | None = None, drift: float | None = None, n: int = 60) -> Summary:
    """Return the summary of a trace with these means: over no thought, over filler, and drift of the base pass."""
    given = {} if content is None else {"filler": [-each for each in spread(content, n)]}
    values = columns(spread(gain, n), base_nll=2.0, **given)  # type: ignore[arg-type]
    if drift is not None:
        values["before_logprob"] = [-2.0 - each for each in spread(drift, n)]
    return summarize(values, {})


def verdict(*means: float | None) -> str:
    """Return the first sentence of the first bullet."""
    return found(*means).sentences[0].split(". ")[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gain", "content", "said"),
    [
        (0.5, 0.3, "Thoughts help, and more than filler of the same length"),
        (0.5, 0.0, "Thoughts help no more than filler of the same length, as far as can be measured"),
        (0.5, -0.3, "Thoughts help less than filler of the same length"),
        (0.5, None, "Thoughts help (filler in their place was not measured)"),
        (
            0.0,
            0.3,
            "Thoughts neither help nor hurt measurably, but they do better than filler of the same length",
        ),
        (
            0.0,
            0.0,
            "Thoughts neither help nor hurt measurably, nor do they do better than filler of the same",
        ),
        (
            0.0,
            -0.3,
            "Thoughts neither help nor hurt measurably, but they do worse than filler of the same length",
        ),
        (-0.5, 0.3, "Thoughts hurt, but less than filler of the same length"),
        (-0.5, 0.0, "Thoughts hurt, as much as filler of the same length, as far as can be measured"),
        (-0.5, -0.3, "Thoughts hurt, and more than filler of the same length"),
        (-0.5, None, "Thoughts hurt (filler in their place was not measured)"),
    ],
)
def test_compared_with_no_thoughts_and_with_filler(gain: float, content: float | None, said: str) -> None:
    assert verdict(gain, content).startswith(said)
    assert "training" not in verdict(gain, content)
    better = verdict(gain, content, 2.0)  # everything else comes after
    assert better.startswith(said)
    assert better.endswith("; with them, the model predicts this text better than before training")


@pytest.mark.parametrize(
    ("gain", "content", "drift", "said"),
    [
        (
            0.4,
            0.3,
            -0.1,
            "Thoughts help, and more than filler of the same length; with them, the model predicts this text better "
            "than before training, but 0.100 of their gain of 0.400 nats only make up for what the base pass has lost",
        ),
        (
            0.4,
            0.3,
            -0.4,
            "Even with thoughts, the model predicts this text not measurably better than before training: they only "
            "make up for the 0.400 nats that the base pass has lost, and filler of the same length does not do as "
            "well",
        ),
        (
            0.4,
            0.0,
            -0.9,
            "Even with thoughts, the model predicts this text worse than before training: they make up for 0.400 of "
            "the 0.900 nats that the base pass has lost, and filler of the same length does as well, as far as can "
            "be measured",
        ),
        (
            0.4,
            -0.3,
            -0.9,
            "Even with thoughts, the model predicts this text worse than before training: they make up for 0.400 of "
            "the 0.900 nats that the base pass has lost, and filler of the same length does better",
        ),
        (
            0.4,
            None,
            -0.9,
            "Even with thoughts, the model predicts this text worse than before training: they make up for 0.400 of "
            "the 0.900 nats that the base pass has lost (filler in their place was not measured)",
        ),
        (
            -0.4,
            0.3,
            -0.9,
            "Thoughts hurt, but less than filler of the same length; with them, the model predicts this text worse "
            "than before training: the base pass alone has lost 0.900 nats",
        ),
        (
            -0.4,
            0.3,
            0.1,
            "Thoughts hurt, but less than filler of the same length; with them, the model predicts this text worse "
            "than before training",
        ),
        (
            -0.4,
            0.3,
            0.4,
            "Thoughts hurt, but less than filler of the same length; with them, the model predicts this text not "
            "measurably better than before training",
        ),
        (
            0.0,
            0.0,
            -0.9,
            "Thoughts neither help nor hurt measurably, nor do they do better than filler of the same length; with "
            "them, the model predicts this text worse than before training: the base pass alone has lost 0.900 nats",
        ),
    ],
)
def test_compared_with_the_model_before_training(gain: float, content: float | None, drift: float, said: str) -> None:
    assert re.sub(r"0\.(399|401)\b", "0.400", verdict(gain, content, drift)) == said


@pytest.mark.parametrize(
    ("content", "drift"), [pair for pair in product((None, 0.3, 0.0, -0.3), (None, 0.3, -0.4, -0.9)) if any(pair)]
)
def test_it_never_begins_with_help_alone(content: float | None, drift: float | None) -> None:
    """Where filler does as well, or the model is no better than before training, the first sentence says so."""
    said = verdict(0.4, content, drift)
    if drift is not None and 0.4 + drift < UNSURE:
        assert said.startswith("Even with thoughts, the model predicts this text")
        assert "help" not in said
    elif content is not None and content < UNSURE:
        assert said.startswith(("Thoughts help no more than filler", "Thoughts help less than filler"))


def test_the_second_sentence_has_the_figures_with_their_intervals() -> None:
    summary = found(0.4, 0.3, -0.9)
    assert summary.over_before is not None
    assert summary.base_over_before is not None
    assert summary.nll_before is not None
    assert summary.over_before.value == pytest.approx(-0.5)
    assert summary.base_over_before.value == pytest.approx(-0.9)
    assert summary.nll_before.value == pytest.approx(1.1)
    interval = r"nats \(95 % interval [-+]0\.\d\d\d to [-+]0\.\d\d\d\)"
    assert re.search(
        r"\. Over 60 positions, thoughts change the log-probability of the true next token by "
        rf"\+0\.400 {interval} compared with no thought, by \+0\.300 {interval} compared with filler and by -0\.500 "
        rf"{interval} compared with before training\.$",
        summary.sentences[0],
    )
    assert re.search(
        r"^Before training, the nll of these tokens was 1\.10 nats\. It is now 2\.00 without thoughts and 1\.60 with "
        rf"them; without thoughts, the log-probability has changed by -0\.900 {interval}\.$",
        summary.sentences[2],
    )


def test_a_sentence_says_how_to_compare_with_the_model_before_training() -> None:
    said = "give the plain model that it was trained from (--before MODEL; before= in Python)."
    assert sum(said in each for each in found(0.4, 0.3).sentences) == 1
    assert said not in found(0.4, 0.3).sentences[0]
    assert not any(said in each for each in found(0.4, 0.3, 0.1).sentences)
    summary = found(0.4, 0.3)
    assert summary.nll_before is summary.over_before is summary.base_over_before is None


def test_few_positions_allow_no_conclusion_on_training() -> None:
    for n in (3, 29):
        text = " ".join(found(0.4, 0.3, -0.9, n=n).sentences)
        assert text.startswith("These are too few positions to tell whether thoughts help")
        assert "train" not in text
    values = columns([0.4] * 60, filler=[-0.3] * 60)
    values["before_logprob"][:29] = [-1.0] * 29
    assert "It is not known whether" in " ".join(summarize(values, {}).sentences)
    assert "training" not in summarize(values, {}).sentences[0]


def test_the_models_own_text_allows_no_conclusion_on_training() -> None:
    values = columns([0.4] * 60, filler=[-0.3] * 60)
    values["before_logprob"] = [-1.0] * 60
    text = " ".join(summarize(values, {"filler": "filler in its place"}, is_own=True).sentences)
    assert text.startswith("The model generated this text")
    assert "train" not in text


def test_without_an_effect_of_thoughts_that_of_training_is_reported() -> None:
    """A closed mixing head over a base model that was trained."""
    values = columns([0.0] * 60, filler=[0.0] * 60)
    for before, said in (
        (-2.5, "It predicts this text better than before training (+0.500 nats (95 %"),
        (-1.5, "It predicts this text worse than before training (-0.500 nats (95 %"),
        (-2.0, "It predicts this text as well as before training (0.000 nats (95 %"),
    ):
        values["before_logprob"] = [before] * 60
        (sentence,) = summarize(values, {}).sentences
        assert "thoughts have no effect" in sentence
        assert said in sentence


def test_a_negligible_change_counts_as_none() -> None:
    assert verdict(0.4, 0.0).startswith("Thoughts help no more than filler")
    values = columns([0.4] * 60, filler=[-1e-5] * 60)
    values["before_logprob"] = [-2.0 + 1e-5] * 60
    said = summarize(values, {}).sentences[0]
    assert said.startswith(
        "Thoughts help no more than filler of the same length, as far as can be measured; with them, the"
    )
    assert "make up" not in said
    values["before_logprob"] = [-1.6 + 1e-5] * 60
    assert (
        "Even with thoughts, the model predicts this text as well as before training: they make up for"
        in (summarize(values, {}).sentences[0])
    )


def test_thoughts_that_are_filler_are_reported_as_such() -> None:
    values = columns([0.4] * 60, filler=[0.0] * 60)
    values["filler_thought_ids"] = values["thought_ids"]
    assert (
        summarize(values, {}).sentences[0].startswith("Thoughts help, and every thought is filler. Over 60 positions")
    )
