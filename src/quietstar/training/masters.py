"""Weights that train belong in float32; a warning says what is lost in 16 bits."""

import logging

import torch
from torch import nn

from quietstar.base.precision import trained_in_half

logger = logging.getLogger(__name__)


def warn_of_lost_updates(model: nn.Module) -> None:
    """Warn if weights that train are kept in 16 bits, where most updates are rounded away."""
    if (dtype := trained_in_half(model)) is None:
        return
    name, smallest = str(dtype).removeprefix("torch."), torch.finfo(dtype).eps / 2
    logger.warning(
        "the weights that train are %s, and an update smaller than %.2g of a weight is lost, as nearly all are at "
        "usual learning rates; load the model in float32 (--dtype auto or float32; from Python dtype=torch.float32): "
        "with bf16 on, it computes in bfloat16 all the same",
        name,
        smallest,
    )
