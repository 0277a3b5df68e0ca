"""A base model's own attention function, and ours in its place where a branch attends.

The modeling files of transformers look their attention function up by `config._attn_implementation`. A hooked base
model's name there ends in `+thoughts`: without a grid such a function is the base model's own; with one, handed
down through the layers as the keyword argument `over_grid`, it is the backend's.
"""

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quietstar.errors import UnsupportedModelError

SUFFIX = "+thoughts"
HOOKED = ("sdpa", "eager")
"""attention functions of base models that take the additive masks of a base pass"""

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
"""what transformers calls: module, query [B, H, T, d], key, value, mask -> [B, T, H, d'] and weights or None"""


class OverGrid(Protocol):
    """What a backend hands down to the layers: how they attend over a grid."""

    def __call__(
        self, own: AttentionFunction, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; `own` is the base model's own attention function."""
        ...


def own_implementation(base_lm: PreTrainedModel) -> str:
    """The name of the base model's own attention function."""
    return str(base_lm.config.get_text_config()._attn_implementation).removesuffix(SUFFIX)


def can_hook(base_lm: PreTrainedModel) -> bool:
    """Whether the base model's attention function can be replaced."""
    return own_implementation(base_lm) in HOOKED and bool(base_lm._can_set_attn_implementation())


def hook(base_lm: PreTrainedModel) -> None:
    """Let a base model take `over_grid`. Whatever it computes without one stays as it is.

    Raises:
        UnsupportedModelError: its attention function cannot be replaced.
    """
    name = own_implementation(base_lm)
    family = base_lm.config.model_type
    if name not in HOOKED:
        raise UnsupportedModelError(
            f"{family} attends by {name}, over which no branch can grow; load it with attn_implementation={HOOKED[0]!r}"
        )
    if not base_lm._can_set_attn_implementation():
        raise UnsupportedModelError(f"{family} has an attention function that cannot be replaced")
    base_lm.config.get_text_config()._attn_implementation = name + SUFFIX


def unhook(base_lm: PreTrainedModel) -> None:
    """Take `hook` back."""
    if own_implementation(base_lm) in HOOKED:
        base_lm.config.get_text_config()._attn_implementation = own_implementation(base_lm)


def own_attention(module: nn.Module) -> AttentionFunction:
    """The attention function that a layer of a hooked base model has of its own."""
    config: Any = module.config
    name = str(config._attn_implementation).removesuffix(SUFFIX)
    if name == "eager":  # every modeling file has its own
        own: AttentionFunction = sys.modules[type(module).__module__].eager_attention_forward
        return own
    return ALL_ATTENTION_FUNCTIONS[name]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    over_grid: OverGrid | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What a hooked base model's layers call."""
    own = own_attention(module)
    if over_grid is None:
        return own(module, query, key, value, attention_mask, **kwargs)
    return over_grid(own, module, query, key, value, **kwargs)


def no_mask(like: Tensor) -> Tensor:
    """[B, 1, 1, 1] NaN: stands where a mask must be given and none is used, and would not go unnoticed if it were."""
    return torch.full((like.shape[0], 1, 1, 1), torch.nan, device=like.device)


for _name in HOOKED:
    AttentionInterface.register(_name + SUFFIX, attend)
    AttentionMaskInterface.register(_name + SUFFIX, ALL_MASK_ATTENTION_FUNCTIONS[_name])
