"""Health checks warn of ill runs at the step where it shows, and are silent about healthy ones."""

import json
import math
from pathlib import Path

import pytest

from quietstar.training.health import HealthChecks

RECORDED = Path(__file__).parent / "recorded"
"""log.jsonl of runs of SmolLM2-135M; see the README there"""


def said_of(lines: list[dict[str, float]], warmup_steps: int = 0) -> dict[int, list[str]]:
    """Step -> the checks that warn there."""
    checks, told = HealthChecks(), {}
    for line in lines:
        before = list(checks.warned)
        words = checks.look(line["step"], line, warmup_steps)
        if new := [name for name in checks.warned if name not in before]:
            assert len(words) == len(new)
            assert all(each.startswith(f"step {line['step']}: ") and "\n" not in each for each in words)
            told.setdefault(line["step"], []).extend(new)
    return told


def recorded(name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (RECORDED / f"{name}.jsonl").read_text().splitlines()]


def training(step: int = 30, **changed: float) -> dict[str, float]:
    """A line of a healthy run."""
    healthy = {
        "loss": 2.0,
        "policy_loss": 0.01,
        "reward_mean": 0.01,
        "reward_std": 0.05,
        "mixing_weight_rms": 0.02,
        "distinct_thoughts": 0.99,
        "thought_gain": 0.0,
        "thought_entropy": 2.5,
        "thought_length": 6.0,
        "policy_share": 0.1,
    }
    return {"step": step} | healthy | changed


def held_out(step: int = 50, **changed: float) -> dict[str, float]:
    healthy = {
        "base_nll": 1.9,
        "nll_before": 2.1,
        "drift": -0.2,
        "drift_low": -0.25,
        "drift_high": -0.15,
        "mixing_weight_rms": 0.02,
        "distinct_thoughts": 0.8,
    }
    return {"step": step} | {f"eval_{name}": value for name, value in (healthy | changed).items()}


def test_a_healthy_run_is_not_warned_of() -> None:
    assert said_of([training(step) for step in (10, 50, 100, 500)] + [held_out()]) == {}


def test_drift_is_told_where_its_interval_is_above_0() -> None:
    worse = held_out(base_nll=2.2, drift=0.1, drift_low=-0.01, drift_high=0.2)
    assert said_of([worse]) == {}
    assert said_of([worse | {"eval_drift_low": 0.01}]) == {50: ["drift"]}


def test_a_reward_that_rises_as_the_base_pass_falls_is_called_what_it_is() -> None:
    ill = held_out(base_nll=2.6, drift=0.5, drift_low=0.4, drift_high=0.6)
    for reward, is_told in ((0.07, True), (-0.01, False)):
        checks = HealthChecks()
        checks.look(40, training(40, reward_mean=reward))
        (words,) = checks.look(50, ill)
        assert ("reward_mean +0.07 is no gain" in words) == is_told


@pytest.mark.parametrize(
    ("changed", "collapses"),
    [
        ({"distinct_thoughts": 0.39}, True),
        ({"distinct_thoughts": 0.41}, False),
        ({"thought_entropy": 0.45}, True),
        ({"thought_entropy": 0.55}, False),
        ({"thought_entropy": 0.01, "thought_gain": 0.06}, False),
        ({"thought_entropy": 0.01, "thought_gain": 0.04}, True),
    ],
)
def test_collapse_is_told_by_distinctness_or_entropy_beside_the_first_line(changed: dict, collapses: bool) -> None:
    assert said_of([training(10, distinct_thoughts=0.8), training(20, **changed)]) == (
        {20: ["collapse"]} if collapses else {}
    )


def test_short_thoughts_are_alike_by_nature() -> None:
    """Those that end early, and those of a step that drew a small n_ahead."""
    assert said_of([training(10), training(20, distinct_thoughts=0.3, thought_length=5.3)]) == {}
    assert said_of([training(10), training(20, distinct_thoughts=0.3, thought_length=5.5)]) == {20: ["collapse"]}


def test_thoughts_that_end_at_once_are_told() -> None:
    short = {"distinct_thoughts": 0.02, "thought_gain": 0.1}
    assert said_of([training(10), training(20, thought_length=0.11, **short)]) == {}
    assert said_of([training(10), training(20, thought_length=0.09, **short)]) == {20: ["empty"]}
    assert said_of([training(10, thought_length=0.0), training(20, thought_length=0.0)]) == {}


@pytest.mark.parametrize(("share", "drowns"), [(0.89, False), (0.91, True)])
def test_a_policy_term_that_drowns_the_nll(share: float, drowns: bool) -> None:
    assert said_of([training(policy_share=share)]) == ({30: ["drowning"]} if drowns else {})


@pytest.mark.parametrize(("step", "weight", "is_told"), [(69, 1e-4, False), (70, 1e-4, True), (70, 2e-3, False)])
def test_a_head_that_stays_shut_is_told_after_the_warm_up(step: int, weight: float, is_told: bool) -> None:
    found = said_of([training(step, mixing_weight_rms=weight)], warmup_steps=20)
    assert found == ({step: ["shut_head"]} if is_told else {})


@pytest.mark.parametrize(("step", "is_told"), [(20, False), (30, True)])
def test_rewards_that_are_all_zero_are_told(step: int, is_told: bool) -> None:
    """Not in the first steps, before the mixing head can have moved."""
    found = said_of([training(step, reward_mean=0.0, reward_std=0.0)], warmup_steps=20)
    assert found == ({step: ["no_rewards"]} if is_told else {})


def test_rewards_that_have_become_zero_need_another_change() -> None:
    """There was a learning rate; and where the head is open, only this line's rows are too short for a reward."""
    checks, none = HealthChecks(), {"reward_mean": 0.0, "reward_std": 0.0}
    (words,) = HealthChecks().look(30, training(**none))
    assert words.endswith("Check that --learning_rate is above 0 and that rows are longer than n_ahead_talk")
    assert checks.look(20, training(20)) == []
    assert checks.look(24, training(24, **none)) == checks.look(25, training(25, **none)) == []
    (words,) = checks.look(30, training(**none, mixing_weight_rms=0.0))
    assert words.endswith("the mixing head has shut. Lower --head_learning_rate or --learning_rate")


def test_figures_that_are_no_numbers_say_nothing_but_that_predictions_are_worse() -> None:
    nothing = dict.fromkeys(training(), math.nan)
    assert said_of([training(10), nothing | {"step": 100}]) == {}
    assert said_of([held_out(base_nll=math.nan, drift=math.nan, drift_low=math.nan, drift_high=math.nan)]) == {
        50: ["drift"]
    }


def test_a_run_without_thoughts_can_only_drift() -> None:
    line = {"step": 100, "loss": 2.0, "nll": 2.0, "base_nll": 2.0}
    assert said_of([line]) == {}
    ill = {
        "eval_base_nll": 2.3,
        "eval_nll_before": 2.0,
        "eval_drift": 0.3,
        "eval_drift_low": 0.2,
        "eval_drift_high": 0.4,
    }
    assert said_of([line, {"step": 100} | ill]) == {100: ["drift"]}
    (said,) = HealthChecks().look(100, ill)
    assert said.endswith("Lower --learning_rate, or stop earlier")


def test_each_check_warns_once_and_remembers_over_a_restart() -> None:
    checks = HealthChecks()
    assert len(checks.look(30, training(policy_share=0.95))) == 1
    again = HealthChecks()
    again.load_state_dict(json.loads(json.dumps(checks.state_dict())))
    assert again.look(40, training(40, policy_share=0.95)) == []
    assert len(again.look(50, training(50, thought_entropy=0.1))) == 1, "the first line's entropy is remembered"


# ---------------------------------------------------------------------- recorded runs


def test_an_ill_run_is_warned_of_at_each_step_where_it_shows() -> None:
    """Its rewards rise to +2.8 nats, as the base pass that they compare with falls faster."""
    lines = recorded("policy-weight-1e6")
    assert said_of(lines, warmup_steps=5) == {4: ["drowning"], 28: ["collapse"], 40: ["drift"]}
    assert lines[-3]["reward_mean"] > 2
    assert lines[-2]["eval_drift"] > 10


@pytest.mark.parametrize(
    ("name", "warmup_steps"), [("defaults", 20), ("balanced-0.3", 5), ("frozen-base", 5), ("original", 5)]
)
def test_healthy_runs_are_not_warned_of(name: str, warmup_steps: int) -> None:
    lines = recorded(name)
    assert len(lines) > 10
    assert said_of(lines, warmup_steps) == {}
