"""Options of --discover: impossible ones are refused, and arms differ in nothing but their policy loss."""

from typing import Any

import pytest

from quietstar.demo.discover.arguments import ARMS, DiscoverArguments
from quietstar.errors import SettingsError


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": -1},
        {"thought_steps": 0},
        {"batch_size": 0},
        {"n_seeds": 0},
        {"spelled_one_in": 2},
        {"measure_every": 0},
        {"thought_temperature": 0.0},
        {"learning_rate": 0.0},
        {"held_out": 1.0},
        {"policy_weight": "much"},
        {"mixing": "soup"},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(SettingsError, match=f"{name} is '?{value}"):
        DiscoverArguments(**settings)


@pytest.mark.parametrize("arms", [[], ["negative"], ["positive", "positive"]])
def test_arms_are_known_and_there_once(arms: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"arms is .*choose from positive, leave_one_out, no_policy"):
        DiscoverArguments(arms=arms)


@pytest.mark.parametrize("text", ["", "ab", "\n", "é"])
def test_a_thought_begins_and_ends_as_a_character_of_the_language(text: str) -> None:
    for name in ("start_text", "end_text"):
        with pytest.raises(SettingsError, match=rf"{name} is .*give one character of "):
            DiscoverArguments(**{name: text})


def test_one_thought_cannot_be_compared_unless_the_policy_loss_is_off() -> None:
    with pytest.raises(SettingsError, match="n_passes is 1"):
        DiscoverArguments(n_passes=1)
    assert DiscoverArguments(n_passes=1, arms=["no_policy"]).n_passes == 1


def test_arms_differ_in_their_policy_loss_alone() -> None:
    args = DiscoverArguments()
    settings = {arm: args.method_settings(arm) for arm in ARMS}
    assert (settings["positive"]["advantage"], settings["leave_one_out"]["advantage"]) == ("positive", "leave_one_out")
    assert settings["positive"]["policy_weight"] == settings["leave_one_out"]["policy_weight"] > 0
    assert settings["no_policy"]["policy_weight"] == 0
    rest = [{k: v for k, v in each.items() if k not in ("advantage", "policy_weight")} for each in settings.values()]
    assert rest[0] == rest[1] == rest[2]


def test_by_default_one_line_in_fifty_is_spelled_and_a_thought_does_not_begin_with_a_dash() -> None:
    args = DiscoverArguments()
    assert args.spelled_one_in >= 50
    assert args.start_text != "~"
    assert args.n_seeds == 3
