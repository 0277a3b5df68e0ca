"""The parameters that Quiet-STaR adds to a base model: a mixing head and two thought embeddings."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class MixingHead(nn.Module):
    """How much the prediction after a thought counts (arXiv 2403.09629, section 4.3).

    Linear(2D, D) - ReLU - Linear(D, D) - ReLU - Linear(D, 1, no bias), the last layer zero at the start, so that
    a fresh model predicts exactly as its base model does.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1, bias=False),
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, h_base: Tensor, h_thought: Tensor) -> Tensor:
        """Return mixing weights [..., 1] in float32, any real number, of states [..., D] without and with a thought."""
        states = torch.cat([h_base, h_thought], dim=-1).to(self.layers[0].weight.dtype)  # type: ignore[arg-type]
        return self.layers(states).float()


class ThoughtAlone(nn.Module):
    """In place of a mixing head: the prediction after the thought counts alone, as in RLP (arXiv 2510.01265)."""

    def forward(self, h_base: Tensor, h_thought: Tensor) -> Tensor:
        """Return mixing weights [..., 1] of 1, in float32, of states [..., D]."""
        return torch.ones_like(h_thought[..., :1], dtype=torch.float32)


MIXING: dict[str, Callable[[int], nn.Module]] = {"head": MixingHead, "thought": lambda hidden_size: ThoughtAlone()}
"""kind of mixing -> makes the module for a hidden size"""


class ThoughtEmbeddings(nn.Module):
    """Start and end of a thought: two vectors outside the vocabulary (arXiv 2403.09629, section 4.2).

    The model is fed `scale` times the stored parameter, so that a step of Adam moves the vector that much further.
    """

    def __init__(self, hidden_size: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.start_embedding = nn.Parameter(torch.zeros(hidden_size))
        self.end_embedding = nn.Parameter(torch.zeros(hidden_size))

    @property
    def start(self) -> Tensor:
        """[D], as fed."""
        return self.scale * self.start_embedding

    @property
    def end(self) -> Tensor:
        """[D], as fed."""
        return self.scale * self.end_embedding

    @torch.no_grad()
    def begin_as(self, vector: Tensor) -> None:
        """Set both so that this vector [D] is fed."""
        for parameter in (self.start_embedding, self.end_embedding):
            parameter.copy_(vector.to(parameter) / self.scale)


class EndHead(nn.Module):
    """Whether a thought ends before its next token: a decision of its own, beside the vocabulary's distribution.

    p_end = sigmoid(w . h + b). A fresh head ends a thought of at most K tokens with probability 1 / (K + 1) in each
    place.
    """

    def __init__(self, hidden_size: int, n_thought_tokens: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.constant_(self.layer.bias, -math.log(max(n_thought_tokens, 1)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logit of p_end [...], in float32, of states [..., D]."""
        return self.layer(hidden.to(self.layer.weight.dtype)).float().squeeze(-1)


def mix(h_base: Tensor, h_thought: Tensor, weight: Tensor) -> Tensor:
    """Return (1 - w) h_base + w h_thought [..., D], w [..., 1], computed in float32, in the dtype of h_base."""
    return ((1 - weight) * h_base.float() + weight * h_thought.float()).to(h_base.dtype)
