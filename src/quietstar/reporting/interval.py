"""Figures, and how sure they are."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n items with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


N_RESAMPLES = 2000
ITEMS_AT_ONCE = 1 << 20
"""drawn at once, of all resamples together"""


def bootstrap(values: Tensor, weights: Tensor | None = None, seed: int = 0) -> Estimate:
    """Mean of values and its percentile bootstrap interval, items drawn with replacement (Efron 1979).

    Args:
        values: [n], one for each item.
        weights: [n], for a weighted mean, such as tokens of a window; None weighs all alike.
        seed: of the resamples: the same for figures that are compared.

    Raises:
        ValueError: there is no item.
    """
    weights = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    return bootstrap_ratios((values.double() * weights)[:, None], weights[:, None], seed)[0]


def bootstrap_ratios(
    above: Tensor, below: Tensor, seed: int = 0, made_of: Callable[[Tensor], Tensor] = lambda ratios: ratios
) -> list[Estimate]:
    """Ratios of F pairs of sums over the same items, all resampled alike, or what is made of them.

    Args:
        above: [n, F], what is summed above the line.
        below: [n, F] or [n, 1], below it.
        seed: of the resamples.
        made_of: ratios [..., F] -> figures [..., G] of which estimates are wanted.

    Raises:
        ValueError: there is no item.
    """
    n = len(above)
    if n == 0:
        raise ValueError("no item to take a mean of")
    above, below = above.double(), below.double()
    generator = torch.Generator().manual_seed(seed)
    ratios = []
    for part in torch.arange(N_RESAMPLES).split(max(1, ITEMS_AT_ONCE // n)):
        drawn = torch.randint(n, (len(part), n), generator=generator)
        times = torch.zeros(len(part), n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        ratios.append((times @ above) / (times @ below))
    resampled = made_of(torch.cat(ratios))
    low, high = resampled.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    values = made_of(above.sum(0) / below.sum(0)).tolist()
    return [Estimate(*each, n=n) for each in zip(values, low, high, strict=True)]


def share_of(right: Tensor) -> Estimate:
    """Share of true values [n] and its Wilson interval."""
    share = Share(int(right.sum()), len(right))
    low, high = share.interval
    return Estimate(value=share.value, low=low, high=high, n=share.n)
