"""Where to think in a training step, when not everywhere."""

import torch
from torch import Tensor

from quietstar.learn import IGNORED


def draw_positions(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """[B, S] bool: a random share of each row's positions that have a label to predict.

    Every row gets round(fraction x its labels), and one where that would be none but fraction is above 0.

    Args:
        labels: [B, S], -100 where there is none; position i predicts the label at i+1.
        fraction: from 0 to 1.
        generator: on the CPU.
    """
    predicts = torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1)).cpu()
    n_wanted = (fraction * predicts.sum(1)).round()
    if fraction > 0:
        n_wanted = n_wanted.clamp(min=1)
    score = torch.rand(labels.shape, generator=generator).masked_fill(~predicts, 2.0)
    rank = score.argsort(dim=1).argsort(dim=1)
    return ((rank < n_wanted[:, None]) & predicts).to(labels.device)
