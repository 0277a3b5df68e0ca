"""Replacing a base model's attention function while branches attend.

The modeling files of transformers look their attention function up by `config._attn_implementation`. While branches
attend, and while a base pass keeps its keys under gradient checkpointing, that name ends in `+thoughts`. The function
of such a name calls the keyword argument `attend_with` that is passed down through the layers, or without one the base
model's own function, here called its native attention.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quietstar.errors import UnsupportedModelError

SUFFIX = "+thoughts"
HOOKED = ("sdpa", "eager")
"""attention functions of base models that take additive masks"""

_LOCK = Lock()
_INSIDE: dict[int, int] = {}
"""id of a config -> number of threads inside `hooked` with it"""

NativeAttention = Callable[..., tuple[Tensor, Tensor | None]]
"""as transformers calls it: module, query [B, H, T, d], key, value, mask -> [B, T, H, d'] and weights or None"""

AttendWith = Callable[..., tuple[Tensor, Tensor | None]]
"""what layers call instead: the same, after the native attention as a first argument"""


class KeyStoringAttention:
    """The native attention, with each layer's keys and values stored in a cache.

    Gradient checkpointing takes the cache away from layers, as recomputing a layer would write to it twice. Here each
    layer writes once.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.stored: set[int] = set()

    def __call__(
        self, native: NativeAttention, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kw: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See AttendWith."""
        index = int(layer.layer_idx)  # type: ignore[arg-type]
        if index not in self.stored:
            self.stored.add(index)
            self.cache.update(key, value, index)
        return native(layer, query, key, value, mask, **kw)


def own_implementation(base_lm: PreTrainedModel) -> str:
    """Return the name of the base model's own attention function."""
    return str(base_lm.config.get_text_config()._attn_implementation).removesuffix(SUFFIX)


def can_hook(base_lm: PreTrainedModel) -> bool:
    """Whether the base model's attention function can be replaced."""
    return own_implementation(base_lm) in HOOKED and bool(base_lm._can_set_attn_implementation())


def check_hook(base_lm: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if the base model's attention function cannot be replaced."""
    if not can_hook(base_lm):
        raise UnsupportedModelError(
            f"the attention of family {base_lm.config.model_type!r} ({own_implementation(base_lm)}) cannot be "
            f"replaced: load it with attn_implementation={HOOKED[0]!r}, or choose the dense backend"
        )


@contextmanager
def hooked(base_lm: PreTrainedModel) -> Iterator[None]:
    """Make a base model accept `attend_with` inside the context; several threads may be inside at once.

    Outside, the attention function has its old name again, which some modeling files read.
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


def native_attention(module: nn.Module) -> NativeAttention:
    """Return the native attention function of a layer of a hooked base model."""
    config: Any = module.config
    name = str(config._attn_implementation).removesuffix(SUFFIX)
    if name == "eager":  # each modeling file defines one
        native: NativeAttention = sys.modules[type(module).__module__].eager_attention_forward
        return native
    return ALL_ATTENTION_FUNCTIONS[name]


def takes_softcap(native: NativeAttention) -> bool:
    """Whether a native attention function applies a softcap; branches must attend as their text does.

    sdpa does not: transformers 5.17 ignores the softcap, and later versions refuse it.
    """
    return native is not ALL_ATTENTION_FUNCTIONS["sdpa"]


def attend(
    module: nn.Module, *args: Any, attend_with: AttendWith | None = None, **how: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as a layer of a hooked base model: with `attend_with`, or without one natively."""
    native = native_attention(module)
    return native(module, *args, **how) if attend_with is None else attend_with(native, module, *args, **how)


def no_mask(device: torch.device) -> Tensor:
    """Return a placeholder mask [1, 1, 1, 1] of NaN, which would show in the output if anything used it."""
    return torch.full((1, 1, 1, 1), torch.nan, device=device)


for _name in HOOKED:
    AttentionInterface.register(_name + SUFFIX, attend)
    AttentionMaskInterface.register(_name + SUFFIX, ALL_MASK_ATTENTION_FUNCTIONS[_name])
