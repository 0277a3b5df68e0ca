"""Base models whose weights are spread over processes (FSDP2, ZeRO-3), for what reads a weight outside its module.

Under either, a module's weights are whole while it runs, and a part of them at any other time. The LM head's and the
embeddings' are read outside: a few rows of the vocabulary at a time, all look-ups with one gradient.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


def is_sharded(model: nn.Module) -> bool:
    """Whether weights are spread over processes: then every process must make the same passes through it."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        is_partitioned(parameter) for parameter in model.parameters()
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of that kind and does no more, so that its weight says all; `whole` makes it readable."""
    is_it = type(module) is kind or (isinstance(module, FSDPModule) and kind in type(module).__bases__)
    return is_it and not any(is_partitioned(parameter) for parameter in module.parameters())


def whole(module: nn.Module) -> Any:
    """The module with its own weights whole until the step's backward pass is done, inside a forward pass.

    FSDP2 then sums and spreads their gradients as those of any module's.
    """
    if isinstance(module, FSDPModule):
        module.unshard()
    return module


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Make all weights of a module whole that ZeRO-3 has spread while it was loaded, on every process."""
    spread = [parameter for parameter in module.parameters() if is_partitioned(parameter)]
    if not spread:
        yield
        return
    zero = importlib.import_module("deepspeed").zero
    with zero.GatheredParameters(spread):
        yield


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has spread it."""
    return hasattr(parameter, "ds_id")
