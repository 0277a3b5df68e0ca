"""The reference that rewards compare with, if not the model itself: a moving average of the weights that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quietstar.base.sharding import is_sharded, reshard, share_of
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.parts import Part


class Reference(Part):
    """An exponential moving average of the weights that train, in float32 (RLP, arXiv 2510.01265).

    average <- ema_decay x average + (1 - ema_decay) x weights, after every good step; with adapters it has these alone.
    It lies where the weights do, a process's share of sharded ones, or on `ema_device`.
    """

    def __init__(self, args: QuietStarTrainingArguments, processes: Processes) -> None:
        self.is_used, self.decay, self.device = args.reference == "ema", args.ema_decay, args.ema_device
        self.processes = processes
        self.average: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Begin a run with the weights of its model, wrapped for its processes or not."""
        if not self.is_used:
            return
        self.is_elsewhere = not (is_sharded(model) or self.processes.is_first)
        self.average = {
            name: share_of(parameter).to(self.device, torch.float32, copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow the weights after a step."""
        for name, average in self.average.items():
            average.lerp_(share_of(model.get_parameter(name)).to(average), 1 - self.decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Put the average in the place of the weights, for passes without gradient.

        The weights wait where the average lies, and come back bit by bit.
        """
        reshard(model)  # A parameter that is gathered is another tensor than its share.
        shares = {name: share_of(model.get_parameter(name)) for name in self.average}
        waiting = {name: share.to(self.device, copy=True) for name, share in shares.items()}
        _copy(self.average, shares)
        reshard(model)
        try:
            yield
        finally:
            _copy(waiting, shares)
            reshard(model)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, or this process's share of it."""
        return {name: average.cpu() for name, average in self.average.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        if state:
            _copy(state, self.average)


def _copy(values: dict[str, Tensor], to: dict[str, Tensor]) -> None:
    for name, tensor in to.items():
        tensor.copy_(values[name])
