"""Random numbers for the rows of a batch: from one generator, or from one for each row.

With its own generator, a row gets the numbers that it would get alone, whatever the other rows are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowGenerators:
    """The generators of B rows, on their device."""

    each: tuple[torch.Generator | None, ...]
    """[B]; None is torch's own"""

    def of(self, rows: Tensor) -> "RowGenerators":
        """Return those of some rows [R]."""
        return RowGenerators(tuple(self.each[row] for row in rows.tolist()))


Generators = torch.Generator | RowGenerators | None
"""None is torch's own generator"""


def uniform(shape: tuple[int, ...], generators: Generators, device: torch.device) -> Tensor:
    """Return float32 numbers from 0 to below 1, of a shape whose first dimension is that of the rows."""
    return _drawn(
        lambda size, one: torch.rand(size, generator=one, device=device, dtype=torch.float32), shape, generators
    )


def integers(below: int, shape: tuple[int, ...], generators: Generators, device: torch.device, rows: int) -> Tensor:
    """Return whole numbers from 0 to under `below`, of a shape whose dimension `rows` is that of the rows."""
    return _drawn(lambda size, one: torch.randint(below, size, generator=one, device=device), shape, generators, rows)


def _drawn(
    draw: Callable[[tuple[int, ...], torch.Generator | None], Tensor],
    shape: tuple[int, ...],
    generators: Generators,
    rows: int = 0,
) -> Tensor:
    if not isinstance(generators, RowGenerators):
        return draw(shape, generators)
    of_a_row = (*shape[:rows], *shape[rows + 1 :])
    return torch.stack([draw(of_a_row, one) for one in generators.each], dim=rows)
