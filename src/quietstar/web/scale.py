"""The colour scale of values: orange below 0, blue above, a pair that colour-blind readers can tell apart.

Its colours are defined in style.css, and figures read them from there.
"""

import math
import re
from collections.abc import Iterable

from quietstar.web import read

N_STEPS = 5
"""steps on each side of 0"""
SHARE = 0.98
"""share of the values within the scale; those beyond it have the colour of its end"""
_COLOUR = re.compile(r"--step-(m?\d): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);")


def colours(*, dark: bool = False) -> list[str]:
    """Return the 2 * N_STEPS + 1 colours, from far below 0 to far above it, as #rrggbb."""
    found = {name: pair[dark] for name, *pair in _COLOUR.findall(read("style.css"))}
    names = [f"m{step}" for step in range(N_STEPS, 0, -1)] + [str(step) for step in range(N_STEPS + 1)]
    return [found[name] for name in names]


def limit(values: Iterable[float | None]) -> float:
    """Return the end of the scale: a round number such that SHARE of the values (None left out) lie within it."""
    sizes = sorted(abs(value) for value in values if value is not None)
    largest = sizes[min(len(sizes) - 1, int(SHARE * len(sizes)))] if sizes else 0.0
    if largest < 1e-30:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(factor * power for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * power >= largest * (1 - 1e-9))


def index(value: float, end: float) -> int:
    """Return the index of a value's colour, on a scale that ends at `end`."""
    steps = N_STEPS * max(-1.0, min(1.0, value / end))
    return N_STEPS + int(math.copysign(math.floor(abs(steps) + 0.5), steps))  # halves away from 0, as in the report
