"""In which precision matrix products are made, and weights are kept while they train."""

import torch
from torch import Tensor, nn

from quietstar.base.sharding import is_partitioned

HALVES = (torch.bfloat16, torch.float16)


def product_dtype(like: Tensor) -> torch.dtype:
    """That of products with such a tensor: autocast's where it is at work, otherwise its own."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def train_in_float32(module: nn.Module) -> None:
    """Keep the weights that train in float32, in place: a step of 1e-4 is lost in bfloat16.

    Frozen weights stay as they are, and so do weights that ZeRO-3 has spread: it keeps float32 copies itself.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype in HALVES and not is_partitioned(parameter):
            parameter.data = parameter.data.float()


def trained_in_half(module: nn.Module) -> torch.dtype | None:
    """The 16-bit dtype that some of the weights that train are kept in; None where there are none."""
    return next((of.dtype for of in module.parameters() if of.requires_grad and of.dtype in HALVES), None)
