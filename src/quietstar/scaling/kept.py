"""Activation memory of a layer, measured on the layer itself with fake tensors.

One or two layers of the base model run over a few fake tokens, and the tensors that autograd saves are added up. So
norms, activations, adapters and autocast count as the modeling file implements them. Attention is replaced by what each
backend keeps: queries, keys, values, output, and a log-sum-exp.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedConfig

from quietstar.attention.hook import NativeAttention, hooked, no_mask
from quietstar.attention.windows import LayerWindows
from quietstar.base.lora import add_lora
from quietstar.errors import QuietStarError, UnsupportedModelError, first_line

TOKENS = (64, 128)
"""two lengths, to separate what grows with the number of tokens from what does not"""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that a forward pass with gradient keeps."""

    layer: float
    """a: for each token in each layer"""
    rest: float
    """r: for each token outside the layers: the final norm, cosines and sines"""
    copies: float
    """in each layer, regardless of tokens: weights cast by autocast"""
    hidden_size: int
    """e_h: bytes of an element of a hidden state"""
    key_size: int
    """e_k: bytes of an element of a key"""
    head_sizes: tuple[int, int]
    """size of a query and of a value in each head"""


def count_kept(
    config: PreTrainedConfig, dtype: torch.dtype, *, autocast: bool = False, lora: dict[str, Any] | None = None
) -> Kept:
    """Count the activation memory of a base model's layers, with weights in a dtype; lora=None trains them all.

    Raises:
        UnsupportedModelError: the layers do not run on fake tensors (experts depend on their input), or their
            attention cannot be hooked.
    """
    with counting(f"the activation memory of a layer of family {config.model_type!r}"):
        found = {(n, T): _saved(config, n, T, dtype, autocast, lora) for n in (1, 2) for T in TOKENS}
    few, many = TOKENS
    in_layer = {T: found[2, T].n_bytes - found[1, T].n_bytes for T in TOKENS}
    layer = (in_layer[many] - in_layer[few]) / (many - few)
    beside = {T: found[1, T].n_bytes - in_layer[T] for T in TOKENS}
    return Kept(
        layer=layer,
        rest=(beside[many] - beside[few]) / (many - few),
        copies=in_layer[few] - layer * few,
        hidden_size=found[1, few].hidden_size,
        key_size=found[1, few].key_size,
        head_sizes=found[1, few].head_sizes,
    )


@contextmanager
def counting(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise into a one-line error about what cannot be counted, and silence their log."""
    log = logging.getLogger(FakeTensorMode.__module__)
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"cannot count {what} ({type(error).__name__}: {first_line(error)}); plan with a dense model of the same "
            "sizes"
        ) from error
    finally:
        log.disabled = was_disabled


@dataclass(frozen=True, slots=True)
class _Saved:
    n_bytes: int
    hidden_size: int
    key_size: int
    head_sizes: tuple[int, int]


def _saved(
    config: PreTrainedConfig, n_layers: int, T: int, dtype: torch.dtype, autocast: bool, lora: dict[str, Any] | None
) -> _Saved:
    few, attention = with_layers(config, n_layers), _PlaceholderAttention()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)
        return tensor

    with torch.device("meta"):
        base_lm = AutoModelForCausalLM.from_config(few, dtype=dtype).train()
        if lora is not None:
            add_lora(base_lm, lora)
    with FakeTensorMode():
        make_fake(base_lm)
        embeds = torch.empty(1, T, few.hidden_size, dtype=dtype, requires_grad=True)
        masks = LayerWindows(few).masks(lambda _: no_mask(embeds.device))
        place = torch.arange(T)[None]
        with (
            saved_tensors_hooks(keep, lambda tensor: tensor),
            hooked(base_lm),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            hidden = base_lm.base_model(
                inputs_embeds=embeds, position_ids=place, attention_mask=masks, attend_with=attention, use_cache=False
            ).last_hidden_state
        own = {tensor.untyped_storage()._cdata for tensor in (*base_lm.parameters(), *base_lm.buffers())}
        n_bytes = sum(storage.nbytes() for name, storage in kept.items() if name not in own)
    return _Saved(n_bytes, hidden.element_size(), attention.key_size, attention.head_sizes)


def with_layers(config: PreTrainedConfig, n_layers: int) -> PreTrainedConfig:
    """Return the config of the same model with its first layers only."""
    few = copy.deepcopy(config)
    few.num_hidden_layers = n_layers
    for name in ("layer_types", "no_rope_layers"):
        if isinstance(getattr(few, name, None), list):
            setattr(few, name, getattr(few, name)[:n_layers])
    return few


def make_fake(model: nn.Module) -> None:
    """Replace the parameters and buffers of a model on the meta device by fake tensors, inside FakeTensorMode."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


class _PlaceholderAttention:
    """Attention that saves the same tensors for its gradient and computes nothing."""

    def __init__(self) -> None:
        self.key_size = 0
        self.head_sizes = 0, 0

    def __call__(
        self, native: NativeAttention, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kw: Any
    ) -> tuple[Tensor, Tensor | None]:
        self.key_size = key.element_size()
        self.head_sizes = query.shape[-1], value.shape[-1]
        return _KeepAttention.apply(query, key, value), None


class _KeepAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        B, H, T, _ = query.shape
        out = query.new_empty(B, T, H, value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(B, H, T, dtype=torch.float32))
        return out

    backward: Callable[..., Any]
