"""Times are said in their largest unit."""

import pytest

from quietstar.reporting.durations import in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0123, "0.0123 seconds"),
        (59.96, "60 seconds"),
        (60, "1 minutes"),
        (5400, "1.5 hours"),
        (864_000, "10 days"),
    ],
)
def test_a_time_is_said_in_its_largest_unit(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
