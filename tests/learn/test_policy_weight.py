"""The weight of the policy loss: a number, or balanced."""

import pytest
import torch

from quietstar.errors import SettingsError
from quietstar.learn import HIGHEST_BALANCED_WEIGHT, PolicyWeight


def test_rewards_that_hardly_differ_are_not_blown_up() -> None:
    weights = PolicyWeight.parse("balanced:0.5").balance(torch.tensor([1.0, 1.0]), torch.tensor([1e-4, 1e-12]))
    assert weights.tolist() == pytest.approx([50, HIGHEST_BALANCED_WEIGHT])


@pytest.mark.parametrize(("setting", "value"), [(0, 0), ("30", 30), ("1e6", 1e6), (2.5, 2.5)])
def test_a_fixed_weight_is_a_number_of_at_least_0(setting: float | str, value: float) -> None:
    assert PolicyWeight.parse(setting) == PolicyWeight(value)


@pytest.mark.parametrize("setting", ["balanced:0.1", "balanced:0.123456789", "balanced:1e-07"])
def test_a_balanced_weight_is_kept_as_it_was_given(setting: str) -> None:
    assert PolicyWeight.parse(setting).setting == setting


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "balanced",
        "balanced:",
        "balanced:x",
        "balanced:-1",
        "balance:1",
        -1,
        "-1",
        "nan",
        "inf",
        True,
        None,
        [1],
        10**400,
    ],
)
def test_what_is_no_weight_is_refused(setting: object) -> None:
    with pytest.raises(SettingsError, match=r"policy_weight is .*give a number of at least 0, or balanced:R"):
        PolicyWeight.parse(setting)
