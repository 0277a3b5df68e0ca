"""A base model's own attention function, and ours in its place where a branch attends.

The modeling files of transformers look their attention function up by `config._attn_implementation`. While branches
attend, and while a base pass keeps its keys under gradient checkpointing, the name there ends in `+thoughts`. Such a
function is the base model's own, or what is handed down through the layers as the keyword argument `over_grid`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quietstar.errors import UnsupportedModelError

SUFFIX = "+thoughts"
HOOKED = ("sdpa", "eager")
"""attention functions of base models that take the additive masks of a base pass"""

_LOCK = Lock()
_INSIDE: dict[int, int] = {}
"""how many hooked passes are under way over a config"""

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
"""what transformers calls: module, query [B, H, T, d], key, value, mask -> [B, T, H, d'] and weights or None"""


class OverGrid(Protocol):
    """What is handed down to the layers, to attend in place of their own function."""

    def __call__(
        self,
        own: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; `own` is the base model's own attention function."""
        ...


class KeepingKeys:
    """Layers attend as they do, and their keys and values are kept in a cache.

    Gradient checkpointing takes every cache away from a layer, as it would be written to a second time when the layer
    is computed again. Here it is written to once.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.kept: set[int] = set()

    def __call__(
        self,
        own: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """See OverGrid."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if layer not in self.kept:
            self.kept.add(layer)
            self.cache.update(key, value, layer)
        return own(module, query, key, value, attention_mask, **kwargs)


def own_implementation(base_lm: PreTrainedModel) -> str:
    """The name of the base model's own attention function."""
    return str(base_lm.config.get_text_config()._attn_implementation).removesuffix(SUFFIX)


def can_hook(base_lm: PreTrainedModel) -> bool:
    """Whether the base model's attention function can be replaced."""
    return own_implementation(base_lm) in HOOKED and bool(base_lm._can_set_attn_implementation())


def check_hook(base_lm: PreTrainedModel) -> None:
    """Raise UnsupportedModelError where the base model's attention function cannot be replaced."""
    if not can_hook(base_lm):
        raise UnsupportedModelError(
            f"the attention of family {base_lm.config.model_type!r} ({own_implementation(base_lm)}) cannot be "
            f"replaced: load it with attn_implementation={HOOKED[0]!r}, or choose the dense backend"
        )


@contextmanager
def hooked(base_lm: PreTrainedModel) -> Iterator[None]:
    """Let a base model take `over_grid` for a while; several threads may be inside at once.

    Some modeling files look at the name of their attention function: outside, it is what it was.
    """
    config = base_lm.config.get_text_config()
    with _LOCK:
        _INSIDE[id(config)] = _INSIDE.get(id(config), 0) + 1
        config._attn_implementation = own_implementation(base_lm) + SUFFIX
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE[id(config)] -= 1
            if not _INSIDE[id(config)]:
                del _INSIDE[id(config)]
                config._attn_implementation = own_implementation(base_lm)


def own_attention(module: nn.Module) -> AttentionFunction:
    """The attention function that a layer of a hooked base model has of its own."""
    config: Any = module.config
    name = str(config._attn_implementation).removesuffix(SUFFIX)
    if name == "eager":  # every modeling file has its own
        own: AttentionFunction = sys.modules[type(module).__module__].eager_attention_forward
        return own
    return ALL_ATTENTION_FUNCTIONS[name]


def bends(own: AttentionFunction) -> bool:
    """Whether a base model's own attention function bends its scores. sdpa does not: transformers 5.17 hands it a soft
    cap that it passes by, later versions refuse to. Branches attend as their text does."""
    return own is not ALL_ATTENTION_FUNCTIONS["sdpa"]


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
    return over_grid(own, module, query, key, value, attention_mask, **kwargs)


def no_mask(device: torch.device) -> Tensor:
    """[1, 1, 1, 1] NaN: stands where a mask must be given and none is used, and would not go unnoticed if it were."""
    return torch.full((1, 1, 1, 1), torch.nan, device=device)


for _name in HOOKED:
    AttentionInterface.register(_name + SUFFIX, attend)
    AttentionMaskInterface.register(_name + SUFFIX, ALL_MASK_ATTENTION_FUNCTIONS[_name])
