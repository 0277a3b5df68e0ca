"""The summary of a trace follows from its columns."""

import math
from typing import Any

import pytest
from rich.console import Console

from quietstar.inspection.details import nats
from quietstar.inspection.findings import Summary
from quietstar.inspection.interventions import CHOICES
from quietstar.inspection.summary import summarize
from quietstar.inspection.tables import effects_table, summary_markdown
from tests.inspection.test_observe import thinker, traced


def columns(gain: list[float | None], base_nll: float = 2.0, **delta: list[float | None]) -> dict[str, list[Any]]:
    """Return the columns of a trace with these gains, and these effects of interventions."""
    n = len(gain)
    found: dict[str, list[Any]] = {
        "row": [0] * n,
        "thought": [True] * n,
        "gain": list(gain),
        "reward": list(gain),
        "mixing_weight": [0.5] * n,
        "base_logprob": [[-base_nll]] * n,
        "before_logprob": [None] * n,
        "base_entropy": [1.5] * n,
        "thought_ids": [[1, 2]] * n,
    }
    for name, values in delta.items():
        found |= {
            f"{name}_delta": list(values),
            f"{name}_kl": [None if each is None else abs(each) for each in values],
            f"{name}_flips": [None if each is None else each < -1 for each in values],
            f"{name}_thought_ids": [[2, 1]] * n,
        }
    return found


def said(gain: list[float | None], **delta: list[float | None]) -> tuple[Summary, str]:
    often = {name: values * 15 for name, values in delta.items()}  # enough positions for conclusions
    summary = summarize(columns(gain * 15, **often), {name: name for name in delta})
    return summary, " ".join(summary.sentences)


def test_the_gain_is_content_and_computation() -> None:
    gain = [2.0, 1.0, 1.5, 1.8]
    summary, text = said(gain, filler=[-1.5, -0.9, -1.0, -1.2], removed=[-each for each in gain])
    assert summary.gain is not None
    assert summary.content is not None
    assert summary.computation is not None
    assert summary.gain.value == pytest.approx(1.575)
    assert summary.content.value == pytest.approx(1.15)
    assert summary.content.value + summary.computation.value == pytest.approx(summary.gain.value)
    assert text.startswith("Thoughts help, and more than filler of the same length. Over 60 positions, thoughts change")
    assert "the content of thoughts is worth +1.15 nats" in text
    assert "computation only, is worth +0.425 nats" in text
    share = summary.content_share
    assert share is not None
    assert share.value == pytest.approx(1.15 / 1.575)
    assert share.low < share.value < share.high < 1
    assert (
        f"So 73 % of the gain comes from the content of thoughts (95 % interval {100 * share.low:.0f} % to "
        f"{100 * share.high:.0f} %), and 27 % from having more computation."
    ) in text


def test_computation_alone() -> None:
    summary, text = said([1.0, 1.2, 0.9], filler=[0.0, 0.1, -0.11], removed=[-1.0, -1.2, -0.9])
    assert text.startswith(
        "Thoughts help no more than filler of the same length, as far as can be measured. Over 45 positions"
    )
    assert "the content of thoughts makes no measurable difference" in text
    assert "computation only, is worth +1.03 nats" in text
    assert "So 0 % of the gain comes from the content of thoughts" in text
    assert summary.content_share is not None
    assert summary.content_share.low < 0 < summary.content_share.high


def test_shares_are_not_reported_if_one_part_works_against_the_other() -> None:
    _, text = said([1.0, 1.2, 0.9], filler=[-2.0, -2.1, -2.2])
    assert "Filler by itself hurts; content first makes up for these 1.07 nats." in text
    assert "% of the gain comes" not in text
    _, text = said([1.0, 1.2, 0.9], filler=[1.0, 0.5, 0.8])
    assert "Filler would help more: content takes away some of what computation is worth." in text
    assert "% of the gain comes" not in text
    summary, text = said([1.0, -1.2, 0.1], filler=[-0.1, 0.1, 0.0])  # no gain to divide
    assert summary.content_share is None
    assert "% of the gain comes" not in text


def test_harm_and_doubt() -> None:
    assert said([-1.0, -2.0, -1.5])[1].startswith("Thoughts hurt")
    assert said([-1.0, 2.0, -1.5, 1.0])[1].startswith("Thoughts neither help nor hurt measurably")


def test_thoughts_that_change_nothing_are_reported_so() -> None:
    summary, text = said([0.0] * 3, filler=[0.0] * 3, removed=[0.0] * 3)
    assert text.endswith("the model predicts exactly the same.")
    assert len(summary.sentences) == 1
    # a change that is small is a change
    assert "have no effect" not in said([0.0] * 3, filler=[0.0, 0.0, 1e-9], removed=[0.0] * 3)[1]
    # nor without another intervention
    assert "have no effect" not in said([1.0] * 3, filler=[0.0] * 3)[1]
    same = columns([0.0] * 3, filler=[0.0] * 3)
    same["filler_thought_ids"] = same["thought_ids"]
    assert "have no effect" not in " ".join(summarize(same, {}).sentences)


def test_few_positions_allow_no_conclusion() -> None:
    summary = summarize(columns([-1.0] * 3, filler=[2.0] * 3), {})
    assert summary.sentences[0].startswith(
        "These are too few positions to tell whether thoughts help: over 3 positions"
    )
    assert "is worth" not in " ".join(summary.sentences)
    assert "hurt" not in " ".join(summary.sentences)
    assert "Compared with filler" not in " ".join(summary.sentences)
    assert "interval" not in " ".join(summary.sentences)
    assert summary.gain is not None
    assert (summary.gain.low, summary.gain.high) == (-math.inf, math.inf)
    assert "filler | 3 | +2.00 | 2.00 | 0.0 % (0.0 to 56.1) |" in summary_markdown(
        summarize(columns([-1.0] * 3, filler=[2.0] * 3), {})
    )


def test_how_long_a_thought_must_be() -> None:
    gain = [1.0] * 3
    cut = {"truncated_0": [-1.0] * 3, "truncated_1": [-0.05] * 3, "truncated_2": [-0.01] * 3}
    assert "1 of their 3 are enough for 90 % of the gain" in said(gain, **cut)[1]
    # a short one that does well by chance does not count if longer ones do worse
    cut = {"truncated_0": [-0.01] * 3, "truncated_1": [-0.9] * 3, "truncated_2": [-0.05] * 3}
    assert "2 of their 3 are enough" in said(gain, **cut)[1]
    cut = {"truncated_0": [-1.0] * 3, "truncated_1": [-0.5] * 3}
    assert "All of their 2 tokens are needed" in said(gain, **cut)[1]
    assert "Their one token is needed for 90 %" in said(gain, truncated_0=[-1.0] * 3)[1]
    assert "Their one token is not needed for 90 %" in said(gain, truncated_0=[-0.01] * 3)[1]


def test_nothing_to_measure() -> None:
    assert said([None])[1] == "No thought has a finite gain: no token with a label follows, or no prediction is finite."
    empty = columns([None])
    empty["thought"] = [False]
    empty["mixing_weight"] = [None]
    assert summarize(empty, {}).sentences == ["There are no thoughts, so there is nothing to measure."]


def test_positions_without_a_truth_count_nowhere() -> None:
    summary, _ = said([1.0, None], removed=[-1.0, None])
    assert summary.interventions[0].n == 15
    assert summary.interventions[0].delta is not None
    assert summary.interventions[0].delta.value == -1.0


def test_an_intervention_that_could_not_be_done_has_no_figures() -> None:
    summary, text = said([1.0, 2.0], swapped=[None, None])
    assert summary.interventions[0].n == 0
    assert summary.interventions[0].delta is None
    assert "other positions" not in text
    assert "swapped | 0 | \N{EN DASH} |" in summary_markdown(summary)


def test_an_intervention_that_changed_no_thought_has_no_figures() -> None:
    """A thought of one token cannot be shuffled, and zeros would look like a finding."""
    found = columns([1.0] * 40, shuffled=[0.0] * 40, filler=[0.0] * 40, swapped=[0.0] * 40)
    for name in ("shuffled", "filler", "swapped"):
        found[f"{name}_thought_ids"] = found["thought_ids"]
    summary = summarize(found, {})
    assert [(each.n, each.n_same, each.delta) for each in summary.interventions] == [(40, 40, None)] * 3
    assert summary.content is None
    text = " ".join(summary.sentences)
    assert "shuffled" not in text
    assert "Every thought is filler already, so content and computation cannot be separated." in text
    assert "Thoughts are the same at every position, so swapping them changes nothing." in text
    assert "shuffled | 40, 40 the same | \N{EN DASH} | \N{EN DASH} | \N{EN DASH} |" in summary_markdown(summary)


def test_difficulty_is_binned_by_what_it_is_measured_in() -> None:
    found = columns([1.0, 3.0], removed=[-1.0, -3.0])
    found["base_logprob"] = [[-0.2, -9.0], [-5.0]]
    summary = summarize(found, {})
    by_nll = [each for each in summary.difficulty if each.by == "base nll"]
    assert [(each.low, each.high, each.n, each.gain.value) for each in by_nll] == [(0.1, 0.5, 1, 1), (4, 8, 1, 3)]
    for each, change in zip(by_nll, (1.0, 3.0), strict=True):
        (removed,) = each.interventions
        assert removed.delta is not None
        assert removed.kl is not None
        assert removed.flips is not None
        assert (removed.n, removed.delta.value, removed.kl.value, removed.flips.value) == (
            1,
            -change,
            change,
            change > 1,
        )
        assert math.isinf(each.gain.low)  # a single position
        assert math.isinf(removed.delta.high)
    (by_entropy,) = [each for each in summary.difficulty if each.by == "base entropy"]
    assert (by_entropy.low, by_entropy.n, by_entropy.gain.value) == (1.0, 2, 2.0)


def test_tables_have_a_row_for_each_intervention() -> None:
    summary = traced(thinker()).summary
    n = len(CHOICES) - 1 + 4  # four lengths of truncated ones
    assert len(summary.interventions) == n
    assert effects_table(summary).row_count == n
    console = Console(width=80)
    with console.capture() as shown:
        console.print(effects_table(summary))
    headings, *lines = shown.get().splitlines()
    assert "change of log p, nats" in headings
    for each, line in zip(summary.interventions, lines, strict=True):  # in 80 characters, a line each
        assert each.label in line
        assert each.delta is None or nats(each.delta.value) in line
    text, by_difficulty = summary_markdown(summary).split("## By difficulty")
    assert text.count("\n| ") == n + 2  # headings and the line under them
    assert by_difficulty.count("\n| base ") == 2
    assert by_difficulty.count("\n| ") == len(summary.difficulty) + 4


def test_without_thoughts_there_is_no_table() -> None:
    assert summary_markdown(traced(thinker(), think="never").summary) == (
        "- There are no thoughts, so there is nothing to measure.\n"
    )


def test_thoughts_that_are_filler_here_and_there_are_counted() -> None:
    found = columns([1.0] * 40, filler=[-0.5] * 40)
    for i in range(12):
        found["filler_thought_ids"][i] = found["thought_ids"][i]
    assert "At 12 of the 40 positions it equals the thought." in " ".join(summarize(found, {}).sentences)


def test_a_generated_text_allows_no_conclusion_about_help() -> None:
    """The text agrees with the same predictions that are compared."""
    found = columns([1.0] * 40, filler=[-1.0] * 40, removed=[-1.0] * 40, truncated_0=[-1.0] * 40)
    summary = summarize(found, {"filler": "filler in its place", "removed": "thought removed"}, is_own=True)
    text = " ".join(summary.sentences)
    assert text.startswith(
        "The model generated this text: at 40 positions it chose the next token by the same predictions"
    )
    for word in ("Thoughts help", "hurt", "is worth", "content", "truncated"):
        assert word not in text
    assert (
        "Thought removed: predictions change by 1.00 nats (95 % interval 1.00 to 1.00) (KL), and the likeliest" in text
    )
    assert summary.content is summary.computation is summary.content_share is None


def test_a_negligible_gain_is_reported_and_not_divided() -> None:
    gain = [2e-7, 3e-7, 4e-7]
    summary, text = said(gain, filler=[-1e-7, -2e-7, -1e-7], truncated_0=[-each for each in gain])
    assert text.startswith("Thoughts change almost nothing, no more than filler of the same length. Over 45 positions")
    assert "+3.0e-07 nats" in text
    assert "% of the gain" not in text
    assert summary.content_share is None
    assert nats(0.0) == "0.000"
    assert nats(-0.0123) == "-0.012"
    assert nats(1e300) == "+1.0e+300"


def test_an_unclear_division_is_not_reported() -> None:
    """A part is negative by chance, or the interval is too wide."""
    summary, text = said([1.0, 0.2, 0.3], filler=[-1.2, -0.1, -0.3])  # content above the gain
    assert summary.content_share is None
    assert "% of the gain comes" not in text
    wild = [30.0, -28.0, 1.0] * 4 + [0.1, 0.2, 0.3]
    summary, text = said([1.0] * 15, filler=wild)
    assert summary.content_share is None or "too few to tell how the gain divides" in text
    wide = [9.0, -9.5, 0.0]
    summary, text = said([1.0] * 3, filler=wide)
    assert summary.content_share is not None
    assert summary.content_share.high - summary.content_share.low > 1
    assert "These positions are too few to tell how the gain divides between them." in text
    for few in (columns([1.0] * 8, filler=[-0.5] * 8), columns([1.0] * 40, filler=[-0.5] * 3 + [None] * 37)):
        assert summarize(few, {}).content_share is None


def test_missing_values_are_left_out_of_their_own_mean_only() -> None:
    found = columns([1.0] * 12, filler=[-1.0] * 12)
    found["filler_kl"][0] = None  # infinite: a possible token became impossible
    found["reward"][1] = None
    (filler,) = summarize(found, {}).interventions
    assert filler.delta is not None
    assert filler.kl is not None
    assert (filler.n, filler.delta.n, filler.kl.n) == (12, 12, 11)
    reward = summarize(found, {}).reward
    assert reward is not None
    assert (reward.value, reward.n) == (1.0, 11)


def test_thoughts_that_were_put_in_their_own_place_are_counted() -> None:
    found = columns([1.0, 2.0, None], swapped=[0.0, -1.0, None])
    found["swapped_thought_ids"][0] = [1, 2]
    summary = summarize(found, {})
    assert summary.interventions[0].n_same == 1
    assert "At 1 of the 2 positions it equals the thought." in " ".join(summary.sentences)
