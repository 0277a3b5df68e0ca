"""Differences between arms on the same tokens, with intervals over seeds and texts.

Legend: R seeds, n rows of text that are resampled as wholes, since neighbouring tokens are not independent.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quietstar.errors import SettingsError
from quietstar.reporting.interval import Estimate, over_seeds_and_texts, wilson
from quietstar.study.arms import BASE
from quietstar.study.measure import Measured
from quietstar.study.recipe import Recipe

HARD = 0.2
"""share of the test tokens that are hard: those with the highest entropy under the untouched base"""
ALL_TOKENS, HARD_TOKENS = "all tokens", "hard tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """By how much an arm is better than a control: above 0, it is."""

    arm: str
    control: str
    where: str
    """ALL_TOKENS or HARD_TOKENS, in nats a token; or a task's measure, as a share"""
    estimate: Estimate
    n_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A figure of an arm by itself."""

    arm: str
    where: str
    estimate: Estimate
    n_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """What an arm's own thoughts are worth beside a replacement of them, in nats a token."""

    arm: str
    intervention: str
    estimate: Estimate
    n_seeds: int


class Comparison:
    """All records of a study, by arm.

    Raises:
        SettingsError: the untouched base has not been measured.
    """

    def __init__(self, recipe: Recipe, records: list[Measured]) -> None:
        self.recipe = recipe
        self.by_arm: dict[str, list[Measured]] = {name: [] for name in recipe.arms}
        for record in records:
            self.by_arm[record.arm].append(record)
        self.by_arm = {name: found for name, found in self.by_arm.items() if found}
        base = self.by_arm.get(BASE)
        if not base or base[0].entropy is None:
            raise SettingsError("the study has no record of the untouched base; run it with --resume")
        for record in records:
            if record.contents != base[0].contents or list(map(len, record.nll)) != list(map(len, base[0].nll)):
                raise SettingsError(
                    f"{record.arm}, seed {record.seed}, was measured on another text, or began as another model, than "
                    "the untouched base; run the study again in another output_dir"
                )
        self.masks = {ALL_TOKENS: [torch.ones(len(row), dtype=torch.bool) for row in base[0].nll]}
        self.masks[HARD_TOKENS] = hardest(base[0].entropy)

    def levels(self) -> list[Level]:
        """Return each arm's nll, on all tokens and on hard ones, and its tasks."""
        found = []
        for name, records in self.by_arm.items():
            for where, values in self._views(records).items():
                estimate = over_seeds_and_texts(*values)
                if where not in self.masks:
                    estimate = within_0_and_1(estimate)
                found.append(Level(arm=name, where=where, estimate=estimate, n_seeds=len(records)))
        return found

    def differences(self) -> list[Difference]:
        """Return how much better each candidate is than every other arm, seed by seed on the same tokens."""
        found = []
        for arm in (name for name in self.recipe.candidates if name in self.by_arm):
            for control in (name for name in self.by_arm if name != arm):
                ours, theirs = paired(self.by_arm[arm], self.by_arm[control])
                if not ours:
                    continue
                mine, other = self._views(ours), self._views(theirs)
                for where in (name for name in mine if name in other):
                    (values, weights), sign = mine[where], -1 if where in self.masks else 1
                    estimate = over_seeds_and_texts(sign * (values - other[where][0]), weights)
                    found.append(
                        Difference(arm=arm, control=control, where=where, estimate=estimate, n_seeds=len(ours))
                    )
        return found

    def replaced(self) -> list[Replaced]:
        """Return what own thoughts are worth beside their replacements, of each arm that thinks."""
        found = []
        for name, records in self.by_arm.items():
            for intervention in records[0].interventions:
                rows = [[[-delta for delta in row] for row in each.interventions[intervention]] for each in records]
                if not any(rows[0]):  # it could not be tried
                    continue
                values, weights = _means(rows, [torch.ones(len(row), dtype=torch.bool) for row in rows[0]])
                if values.shape[1] > 1:
                    estimate = over_seeds_and_texts(values, weights)
                    found.append(Replaced(arm=name, intervention=intervention, estimate=estimate, n_seeds=len(records)))
        return found

    def _views(self, records: list[Measured]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return values [R, n] and weights [n] of each thing that is compared."""
        found: dict[str, tuple[Tensor, Tensor | None]] = {
            where: _means([record.nll for record in records], mask)
            for where, mask in self.masks.items()
            if sum(bool(row.any()) for row in mask) > 1  # one row alone has no interval
        }
        for task, measures in records[0].tasks.items():
            for measure in measures:
                values = [record.tasks[task][measure] for record in records]
                found[f"{task}, {measure.replace('_', ' ')}"] = torch.tensor(values, dtype=torch.float64), None
        return found


def within_0_and_1(estimate: Estimate) -> Estimate:
    """Return the estimate of a share: within 0 and 1, and as wide as Wilson's where all answers are right or wrong."""
    low, high = estimate.low, estimate.high
    if estimate.value in (0.0, 1.0):
        low, high = wilson(round(estimate.value * estimate.n), estimate.n)
    return replace(estimate, low=max(0.0, low), high=min(1.0, high))


def hardest(entropy: list[list[float]]) -> list[Tensor]:
    """Return masks [tokens] of each row: true at the share HARD of all tokens with the highest entropy."""
    flat = torch.tensor([value for row in entropy for value in row], dtype=torch.float64)
    is_hard = torch.zeros_like(flat, dtype=torch.bool)
    is_hard[flat.argsort(descending=True, stable=True)[: max(1, round(HARD * len(flat)))]] = True
    return list(is_hard.split([len(row) for row in entropy]))


def paired(ours: list[Measured], theirs: list[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Return the records of two arms with the same seeds; one that does not train stands beside every seed."""
    if theirs[0].seed is None:
        return ours, theirs * len(ours)
    by_seed = {record.seed: record for record in theirs}
    both = [record for record in ours if record.seed in by_seed]
    return both, [by_seed[record.seed] for record in both]


def _means(rows: list[list[list[float]]], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return means [R, n] over the masked tokens of each row that has some, and the numbers [n] of these."""
    counts = torch.tensor([int(mask.sum()) for mask in masks])
    has_some = counts > 0
    values = torch.stack(
        [
            torch.stack(
                [torch.tensor(row, dtype=torch.float64)[mask].sum() for row, mask in zip(record, masks, strict=True)]
            )
            for record in rows
        ]
    )
    return (values[:, has_some] / counts[has_some]), counts[has_some]
