"""Values of options are checked by one function for each kind of limit, with one message."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from quietstar.errors import SettingsError
from quietstar.runs.fields import check_above_0, check_at_least, check_values, option


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, None),
        (2, None),
        (2.5, None),
        (1, "rows is 1; give a number of at least 2"),
        (math.nan, "rows is nan; give a number of at least 2"),
        (math.inf, "rows is inf; give a number of at least 2"),
    ],
)
def test_an_option_has_a_lowest_value(value: float | None, told: str | None) -> None:
    options = SimpleNamespace(rows=value)
    if told is None:
        check_at_least(options, {"rows": 2})
        return
    with pytest.raises(SettingsError, match=f"^{told}$"):
        check_at_least(options, {"rows": 2})
    with pytest.raises(SettingsError, match="give a whole number of at least 2"):
        check_at_least(options, {"rows": 2}, "whole number")


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_an_option_is_above_0(value: float) -> None:
    check_above_0(SimpleNamespace(rate=None, other=0.1), ("rate", "other"))
    with pytest.raises(SettingsError, match=f"^rate is {value}; give a number above 0$"):
        check_above_0(SimpleNamespace(rate=value), ("rate",))


@dataclass
class Meal:
    """Options with choices."""

    drink: str | None = option("tea", "what to drink", choices=("tea", "milk"))
    dishes: list[str] = option([], "what to eat", "food", ("soup", "rice"))
    place: str = option("home", "where")
    hours: float | None = option(None, "how long")
    guests: int = option(2, "how many")

    def __post_init__(self) -> None:
        check_values(self)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"hours": 1, "guests": 3}, None),
        ({"hours": "1e-4"}, "hours is '1e-4'; give a number"),
        ({"guests": "3"}, "guests is '3'; give a number"),
        ({"guests": [3]}, r"guests is \[3\]; give a number"),
        ({"drink": "milk", "dishes": ["rice", "soup"], "place": "anywhere"}, None),
        ({"drink": None}, None),
        ({"drink": "ink"}, "drink is 'ink'; choose from tea, milk"),
        ({"drink": ""}, "drink is ''; choose from tea, milk"),
        ({"drink": 3}, "drink is 3; choose from tea, milk"),
        ({"dishes": ["soup", "soap"]}, "dishes is 'soap'; choose from soup, rice"),
    ],
)
def test_an_option_has_choices_or_is_a_number(given: dict, told: str | None) -> None:
    if told is None:
        Meal(**given)
        return
    with pytest.raises(SettingsError, match=f"^{told}$"):
        Meal(**given)
