"""Options of a distillation that do not fit each other are refused in one line."""

from typing import Any

import pytest

from quietstar.errors import SettingsError
from quietstar.training.distillation.arguments import DistillArguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "js"}, "objective is 'js'; choose from kl, reverse_kl, fast, nll"),
        ({"reward_weight": -1.0}, "reward_weight is -1.0; give a number of at least 0"),
        ({"teacher_passes": 0}, "teacher_passes is 0; give a number of at least 1"),
        ({"cache_tokens": 0}, "cache_tokens is 0; give a number of at least 1"),
        ({"teacher_n_ahead": 1}, "teacher_n_ahead is 1"),
        ({"teacher_think": "sometimes"}, "sometimes"),
        ({"teacher_temperature": -1.0}, "temperature"),
        (
            {"teacher_passes": 2, "teacher_temperature": 0.0},
            "greedy thoughts are all alike; give a teacher_temperature",
        ),
        ({"reward_weight": 2.0}, "reward_weight is 2.0, and is of objective fast alone; leave it out"),
        ({"cache_tokens": 2}, "cache_tokens is 2, and is of a cache alone; leave it out"),
        ({"cache": "x", "objective": "fast"}, "a cache keeps predictions, and fast learns from none; leave it out"),
        ({"cache": "x", "objective": "nll"}, "a cache keeps predictions, and nll learns from none"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DistillArguments(**options)


def test_the_temperature_matters_where_thoughts_are_sampled() -> None:
    with pytest.raises(SettingsError, match=r"teacher_temperature is 0.5, and is of teacher_passes above 1 alone"):
        DistillArguments(teacher_temperature=0.5)
    assert DistillArguments(teacher_temperature=0.5, teacher_passes=2).way_to_think["teacher_temperature"] == 0.5
