"""Confidence intervals: Wilson's for a proportion, the bootstrap for a mean."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

Z_95 = 1.959963984540054
"""a normal variable lies within this many standard deviations of its mean 95 % of the time"""


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a proportion (Wilson 1927, equation 4).

    Raises:
        ValueError: n is below 1, or right is not between 0 and n.
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"{right} of {n} is not a proportion")
    share, z = right / n, Z_95
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at 0 of n and n of n the bound is exactly 0 or 1, but rounding may miss it
    return (0.0 if right == 0 else centre - reach), (1.0 if right == n else centre + reach)


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion: how many of n were right."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """The proportion, between 0 and 1."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return wilson(self.right, self.n)

    def to_dict(self) -> dict[str, float]:
        """For metrics.json."""
        low, high = self.interval
        return {"right": self.right, "n": self.n, "share": self.value, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n items with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


N_RESAMPLES = 2000
ITEMS_AT_ONCE = 1 << 20
"""how many items are resampled at a time, over all resamples"""


def bootstrap(values: Tensor, weights: Tensor | None = None) -> Estimate:
    """Return the mean of values [n], weighted by [n] if given, and its percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: there are no items.
    """
    weights = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    return bootstrap_ratios((values.double() * weights)[:, None], weights[:, None])[0]


def bootstrap_ratios(
    above: Tensor, below: Tensor, made_of: Callable[[Tensor], Tensor] = lambda ratios: ratios
) -> list[Estimate]:
    """Return estimates of F ratios of sums over n items: of above [n, F] and below [n, F] or [n, 1].

    All of them use the same resamples. With `made_of`, which maps ratios [..., F] to figures [..., G], the estimates
    are of these figures.

    Raises:
        ValueError: there are no items.
    """
    n = len(above)
    if n == 0:
        raise ValueError("cannot take the mean of no items")
    above, below = above.double(), below.double()
    generator = torch.Generator().manual_seed(0)  # the same resamples for figures that are compared
    ratios = []
    for part in torch.arange(N_RESAMPLES).split(max(1, ITEMS_AT_ONCE // n)):
        sampled = torch.randint(n, (len(part), n), generator=generator)
        counts = torch.zeros(len(part), n, dtype=torch.float64)
        counts.scatter_add_(1, sampled, torch.ones_like(counts))
        ratios.append((counts @ above) / (counts @ below))
    resampled = made_of(torch.cat(ratios))
    low, high = resampled.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    values = made_of(above.sum(0) / below.sum(0)).tolist()
    return [Estimate(*each, n=n) for each in zip(values, low, high, strict=True)]


def share_of(right: Tensor) -> Estimate:
    """Return the proportion of true values [n] and its Wilson interval."""
    share = Share(int(right.sum()), len(right))
    low, high = share.interval
    return Estimate(value=share.value, low=low, high=high, n=share.n)
