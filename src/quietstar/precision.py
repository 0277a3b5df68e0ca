"""In which precision matrix products are made."""

import torch
from torch import Tensor


def product_dtype(like: Tensor) -> torch.dtype:
    """That of products with such a tensor: autocast's where it is at work, otherwise its own."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
