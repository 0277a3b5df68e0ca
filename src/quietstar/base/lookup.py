"""Embedding look-ups that share one gradient.

A thought is looked up token by token, and each separate look-up would allocate a gradient as large as the table.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule

from quietstar.base.sharding import is_plain, whole


class LookUps:
    """All look-ups of a forward pass in one embedding table.

    A module that does more than look up (an adapter, a scale, a hook), or is compiled, is called as it is. Hooks of
    gradient checkpointing that only require a gradient still take effect.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parts: list[tuple[Tensor, Tensor]] = []
        """tokens [n] and gradients [n, D] of their embeddings, collected during a backward pass"""
        self.table: Tensor | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., D] of token ids [...]."""
        module = self.module
        if not _only_looks_up(module):
            return module(tokens)
        weight = whole(module).weight  # calling a sharded module would reshard it
        if not (torch.is_grad_enabled() and weight.requires_grad):
            embeds = nn.functional.embedding(tokens, weight)
            return embeds.requires_grad_() if any(map(_requires_gradient, module._forward_hooks.values())) else embeds
        if self.table is None:
            self.table = _Table.apply(weight, self.parts, module.padding_idx)
        return _LookUp.apply(self.table, tokens, self.parts)


def _only_looks_up(module: nn.Module) -> bool:
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    hooks = [hook for kind in kinds for hook in kind.values() if not _requires_gradient(hook)]
    has_hooks = bool(hooks) and not isinstance(module, FSDPModule)  # FSDP's hooks only gather the weight
    only = is_plain(module, nn.Embedding) and "forward" not in vars(module) and not has_hooks
    return only and not (module.sparse or module.scale_grad_by_freq or module.max_norm or torch.compiler.is_compiling())


def _requires_gradient(hook: Callable[..., Any]) -> bool:
    """Whether it is the hook that transformers and PEFT put on embeddings for gradient checkpointing."""
    return getattr(hook, "__name__", "").startswith("make_inputs_require_grad")


class _Table(torch.autograd.Function):
    """The table itself. Its backward pass runs after those of all look-ups."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, parts: list[tuple[Tensor, Tensor]], padding_idx: int | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.parts, ctx.n_rows, ctx.padding_idx = parts, len(weight), padding_idx
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None) -> tuple[Tensor | None, ...]:
        if not ctx.parts:
            return None, None, None
        tokens, gradients = map(torch.cat, zip(*ctx.parts, strict=True))
        ctx.parts.clear()
        padding = -1 if ctx.padding_idx is None else ctx.padding_idx
        d_weight = torch.ops.aten.embedding_dense_backward(gradients, tokens, ctx.n_rows, padding, False)
        return d_weight, None, None


class _LookUp(torch.autograd.Function):
    """A look-up that hands its gradient to the table's backward pass."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, tokens: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.parts = parts
        return nn.functional.embedding(tokens, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        ctx.parts.append((tokens.flatten(), gradient.flatten(0, -2)))
        return None, None, None
