"""Confidence intervals: Wilson's for a proportion, the bootstrap for a mean, and one over seeds and texts."""

from collections.abc import Callable
from dataclasses import dataclass
from math import atan, cos, pi, sin, sqrt

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
    """the mean"""
    low: float
    """lower end of the interval"""
    high: float
    """upper end"""
    n: int
    """items"""

    def signed(self) -> str:
        """Return it as a difference: +0.0123 (+0.0052 to +0.0195)."""
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


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


def over_seeds_and_texts(values: Tensor, weights: Tensor | None = None) -> Estimate:
    """Return the mean of values [R, n] of R seeds on the same n texts, and its 95 % interval for other seeds and texts.

    The variance of the mean is that of two crossed random effects, seeds and texts, estimated from mean squares. Its
    part between seeds has R - 1 degrees of freedom, which a bootstrap ignores: with two seeds that differ, a bootstrap
    over seeds and, within them, texts holds the true mean in 55 of 100 cases, this interval in 92 to 98
    (tests/reporting/test_interval.py). Student's quantile is a mean of those of the two parts, weighted by their
    standard errors. With one seed the interval is for other texts alone.

    Args:
        values: [R, n]
        weights: [n] of the texts, such as their numbers of tokens; None for equal ones.

    Raises:
        ValueError: there are fewer than two texts.
    """
    R, n = values.shape
    if n < 2:
        raise ValueError(f"an interval over texts needs at least two, and there are {n}")
    values = values.double()
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    weights = weights / weights.mean()
    mean = (values * weights).mean()
    rest = (values - mean) * weights  # [R, n]: of a ratio of sums, to first order
    of_seeds, of_texts = rest.mean(1), rest.mean(0)
    squares_of_texts = R * of_texts.square().sum() / (n - 1)
    between_seeds = torch.zeros((), dtype=torch.float64)
    if R > 1:
        squares_of_seeds = n * of_seeds.square().sum() / (R - 1)
        noise = (rest - of_seeds[:, None] - of_texts).square().sum() / ((R - 1) * (n - 1))
        between_seeds = (squares_of_seeds - noise).clamp(min=0) / (R * n)
        squares_of_texts = torch.maximum(squares_of_texts, noise)
    between_texts = squares_of_texts / (R * n)
    errors = sqrt(between_seeds), sqrt(between_texts)
    share = errors[0] / sum(errors) if sum(errors) else 0.0
    quantile = (1 - share) * student_975(n - 1) + (share * student_975(R - 1) if share else 0.0)
    reach = quantile * sqrt(between_seeds + between_texts)
    return Estimate(value=float(mean), low=float(mean) - reach, high=float(mean) + reach, n=n)


def student_975(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t with a whole number of degrees of freedom, at least 1."""
    low, high = 0.0, 13.0  # 12.71 with one degree of freedom
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies between -t and t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = atan(t / sqrt(freedom))
    is_odd = freedom % 2 == 1
    term = total = cos(angle) if is_odd else 1.0
    for k in range(2 if is_odd else 1, freedom - 1, 2):
        term *= k / (k + 1) * cos(angle) ** 2
        total += term
    if not is_odd:
        return sin(angle) * total
    return 2 / pi * (angle + (sin(angle) * total if freedom > 1 else 0.0))
