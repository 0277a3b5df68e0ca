"""The optimizer: the heads and thought embeddings may have their own learning rate, and are clipped separately."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quietstar.model import QuietStarForCausalLM


def added_parameters(model: QuietStarForCausalLM) -> list[nn.Parameter]:
    """Return the parameters of the mixing head, the thought embeddings and the end head, where there is one."""
    heads = [model.mixing_head, model.thought_embeddings, *([] if model.end_head is None else [model.end_head])]
    return [parameter for head in heads for parameter in head.parameters()]


def give_own_rate(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float | None
) -> None:
    """Move parameters of an optimizer into groups with another learning rate; their other settings stay.

    They are moved even without a rate, so that a saved optimizer can be loaded whichever rate is given later.

    Args:
        optimizer: before its first step, and before a scheduler is made for it.
        parameters: to be moved; those that the optimizer does not have are ignored.
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


def clip_apart(
    model: nn.Module,
    heads: Iterable[nn.Parameter],
    clip: Callable[[list[nn.Parameter], float], Tensor],
    max_norm: float,
) -> Tensor | None:
    """Return the norm [] of all gradients, after clipping those of some parameters separately from all others.

    If only one of the two groups has gradients, nothing is clipped, and None is returned.

    Args:
        model: has all parameters.
        heads: the parameters to clip separately, see `added_parameters`.
        clip: clips the gradients of parameters to a norm, and returns their norm [] before.
        max_norm: of each of the two groups.
    """
    in_heads = {id(parameter) for parameter in heads}
    learning = [parameter for parameter in model.parameters() if parameter.grad is not None]
    groups = [[each for each in learning if (id(each) in in_heads) == of_heads] for of_heads in (False, True)]
    if not all(groups):  # The norm of no gradients would lie on the CPU, wherever the model is.
        return None
    norms = [clip(group, max_norm) for group in groups]
    return torch.stack([getattr(norm, "full_tensor", lambda norm=norm: norm)() for norm in norms]).norm()


@contextmanager
def settings_kept(optimizer: Any, scheduler: Any, keeps: bool) -> Iterator[None]:
    """Keep an optimizer's settings, such as its learning rate, while a saved state is loaded into it, if `keeps`."""
    if not keeps:
        yield
        return
    kept = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
