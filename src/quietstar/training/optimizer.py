"""Parameter groups of the optimizer: the small new parts of a model may learn at a rate of their own."""

from collections.abc import Iterable

import torch
from torch import nn

from quietstar.model import QuietStarForCausalLM


def parts_made_new(model: QuietStarForCausalLM) -> list[nn.Parameter]:
    """Parameters of the mixing head and of the thought embeddings."""
    return [*model.mixing_head.parameters(), *model.thought_embeddings.parameters()]


def give_own_rate(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float | None
) -> None:
    """Move parameters of an optimizer into groups with another learning rate; their other settings stay.

    Without a rate they are moved all the same, so that a saved optimizer can be loaded whichever rate is given later.

    Args:
        optimizer: before its first step, and before a scheduler is made for it.
        parameters: those that it does not have are left out.
        learning_rate: of the new groups; None for that of the old ones.
    """
    moved = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in moved]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
            rate = group["lr"] if learning_rate is None else learning_rate
            optimizer.add_param_group({**group, "params": own, "lr": rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
