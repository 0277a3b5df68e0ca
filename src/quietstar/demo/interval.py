"""Shares of right answers, and how sure they are."""

from dataclasses import dataclass
from math import sqrt

Z_95 = 1.959963984540054
"""a normal variable lies within so many standard deviations of its mean in 95 % of cases"""


def wilson(right: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, equation 4), 95 % unless z says otherwise.

    Raises:
        ValueError: n is below 1, or right is not from 0 to n.
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"{right} of {n} is no share")
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at 0 of n and n of n the bound is exactly 0 or 1, which rounding may miss
    return (0.0 if right == 0 else centre - reach), (1.0 if right == n else centre + reach)


@dataclass(frozen=True, slots=True)
class Share:
    """How many of n were right."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return wilson(self.right, self.n)

    def to_dict(self) -> dict[str, float]:
        """For metrics.json."""
        low, high = self.interval
        return {"right": self.right, "n": self.n, "share": self.value, "low": low, "high": high}
