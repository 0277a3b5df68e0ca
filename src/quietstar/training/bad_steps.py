"""Which optimizer steps are skipped: those that are not finite, and spikes far above what a run is used to."""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

WINDOW = 128
"""good steps that a spike is compared with, the latest"""
FEWEST = 20
"""good steps before there can be a spike"""
NORMAL = 1.4826
"""median absolute deviation of a normal distribution -> its standard deviation"""


@dataclass(kw_only=True)
class BadSteps:
    """Judges steps by their loss and gradient norm, which are the same on all ranks, and remembers.

    Args:
        spikes: robust standard deviations above the median of the latest good steps (a median absolute deviation is
            taken for 1 / 1.4826 of one) from which a step is a spike; 0 knows no spikes.
    """

    spikes: float = 0.0
    count: int = 0
    """bad steps of the run"""
    in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    """of the latest good steps"""
    norms: list[float] = field(default_factory=list)
    """gradient norms of the same"""

    def judge(self, loss: float, grad_norm: float | None) -> str | None:
        """Why the optimizer may not see this step; None where it may.

        Args:
            loss: of the whole step, over all ranks.
            grad_norm: before it is clipped; None where nobody says.
        """
        why = self._why_not(loss, grad_norm)
        if why is not None:
            self.count += 1
            self.in_a_row += 1
            return why
        self.in_a_row = 0
        self.losses = [*self.losses, loss][-WINDOW:]
        if grad_norm is not None:
            self.norms = [*self.norms, grad_norm][-WINDOW:]
        return None

    def _why_not(self, loss: float, grad_norm: float | None) -> str | None:
        for what, value, past in (("loss", loss, self.losses), ("gradient norm", grad_norm, self.norms)):
            if value is None:
                continue
            if not math.isfinite(value):
                return f"the {what} is {value}"
            limit = spike_limit(past, self.spikes) if self.spikes else math.inf
            if value > limit:
                return f"the {what} is {value:.4g}, a spike above {limit:.4g}"
        return None

    def state(self) -> dict[str, Any]:
        """To go on from after a restart."""
        return {name: getattr(self, name) for name in ("count", "in_a_row", "losses", "norms")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        for name, value in state.items():
            setattr(self, name, value)


def spike_limit(past: list[float], spikes: float) -> float:
    """So many robust standard deviations above the median, a deviation at least a hundredth of it; or infinity."""
    if len(past) < FEWEST:
        return math.inf
    middle = median(past)
    deviation = NORMAL * median(abs(value - middle) for value in past)
    return middle + spikes * max(deviation, abs(middle) / 100)
