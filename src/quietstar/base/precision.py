"""The precision of matrix products, and of weights in training."""

import torch
from torch import Tensor, nn

from quietstar.base.sharding import is_partitioned

HALVES = (torch.bfloat16, torch.float16)


def product_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with a tensor: autocast's if enabled, otherwise the tensor's own."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def train_in_float32(module: nn.Module) -> None:
    """Convert trainable weights to float32 in place: an update of 1e-4 is rounded away in bfloat16.

    Frozen weights stay as they are. So do weights that ZeRO-3 has partitioned, as it keeps float32 copies itself.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype in HALVES and not is_partitioned(parameter):
            parameter.data = parameter.data.float()
