"""Base models whose weights are sharded over processes (FSDP2, ZeRO-3), and access to weights outside their module.

Under both, a module's weights are whole while it runs and sharded otherwise. The weights of the LM head and of the
embeddings are also read outside their modules: for a few states at a time, and for look-ups that share a gradient.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def is_sharded(model: nn.Module) -> bool:
    """Whether weights are sharded over processes; then all processes must run the same forward passes."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        is_partitioned(parameter) for parameter in model.parameters()
    )


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of that kind, so that its weight, gathered by `whole`, replaces calling it."""
    is_kind = type(module) is kind or (isinstance(module, FSDPModule) and kind in type(module).__bases__)
    return is_kind and not any(is_partitioned(parameter) for parameter in module.parameters())


def whole(module: nn.Module) -> Any:
    """Gather a module's own weights until the end of the step's backward pass, and return it. Call it inside a forward.

    FSDP2 reduces and scatters their gradients as usual.
    """
    if isinstance(module, FSDPModule):
        module.unshard()
    return module


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gather, on every process, the weights of a module that ZeRO-3 partitioned while loading it."""
    partitioned = [parameter for parameter in module.parameters() if is_partitioned(parameter)]
    if not partitioned:
        yield
        return
    zero = importlib.import_module("deepspeed").zero
    with zero.GatheredParameters(partitioned):
        yield


def has_weights(base_lm: PreTrainedModel) -> bool:
    """Whether this process has loaded the weights: under FSDP, the first one may load them for all.

    The others then have parameters on the meta device, or zeros (transformers 5.17).
    """
    if any(parameter.is_meta for parameter in base_lm.parameters()):
        return False
    embeddings = base_lm.get_input_embeddings().weight
    return embeddings.numel() == 0 or bool(embeddings.any())  # ZeRO-3, which loads its shares everywhere, shows none


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has partitioned the parameter."""
    return hasattr(parameter, "ds_id")


def share_of(parameter: nn.Parameter) -> Tensor:
    """Return what this process holds of a parameter, without gradient; writing to it changes the parameter."""
    if is_partitioned(parameter):
        share: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        return share
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def reshard(model: nn.Module) -> None:
    """Free the weights that are still whole between passes, so that the next pass gathers what the shares say."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for parameter in model.parameters():
        if is_partitioned(parameter) and parameter.ds_status.name == "AVAILABLE":  # type: ignore[attr-defined]
            parameter.partition()  # type: ignore[attr-defined]
