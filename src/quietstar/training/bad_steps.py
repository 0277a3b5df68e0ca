"""Which optimizer steps are bad: those that are not finite, and spikes far above the latest good steps."""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar

from quietstar.training.parts import Part

WINDOW = 128
"""number of latest good steps that a spike is compared with"""
FEWEST = 20
"""good steps that are needed before a step can be a spike"""
NORMAL = 1.4826
"""median absolute deviation of a normal distribution -> its standard deviation"""


@dataclass(kw_only=True)
class BadSteps(Part):
    """Judges steps by their loss and gradient norm, which are the same on all ranks, and counts the bad ones.

    Args:
        spikes: a step is a spike if its loss or gradient norm lies more than this many robust standard deviations
            (1.4826 median absolute deviations) above the median of the latest good steps; 0: no step is one.
    """

    kept: ClassVar[tuple[str, ...]] = ("count", "in_a_row", "losses", "norms")

    spikes: float = 0.0
    count: int = 0
    """bad steps of the run"""
    in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    """of the latest good steps"""
    norms: list[float] = field(default_factory=list)
    """gradient norms of the same"""

    def judge(self, loss: float, grad_norm: float | None) -> str | None:
        """Return why a step is bad, None if it is good, and remember it.

        Args:
            loss: of the whole step, over all ranks.
            grad_norm: before clipping; None if it is not known.
        """
        for what, value, past in (("loss", loss, self.losses), ("gradient norm", grad_norm, self.norms)):
            limit = spike_limit(past, self.spikes) if self.spikes else math.inf
            if value is None or (math.isfinite(value) and value <= limit):
                continue
            self.count += 1
            self.in_a_row += 1
            return f"the {what} is " + (
                f"{value:.4g}, a spike above {limit:.4g}" if math.isfinite(value) else f"{value}"
            )
        self.in_a_row = 0
        self.losses = [*self.losses, loss][-WINDOW:]
        if grad_norm is not None:
            self.norms = [*self.norms, grad_norm][-WINDOW:]
        return None


def spike_limit(past: list[float], spikes: float) -> float:
    """Return the value above which a step is a spike: `spikes` robust standard deviations above the median.

    A standard deviation is at least a hundredth of the median. Without enough values, the limit is infinity.
    """
    if len(past) < FEWEST:
        return math.inf
    middle = median(past)
    deviation = NORMAL * median(abs(value - middle) for value in past)
    return middle + spikes * max(deviation, abs(middle) / 100)
