"""Log-probabilities of given tokens and their gradients, from the logits of a few states at a time.

Softmax, log and sums are in float32 whatever the LM head's dtype.

Legend: n states, D hidden size, V vocabulary.

    logprob = logits[token] / temperature - lse          d_logits = (one-hot - p) d_logprob / temperature
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quietstar.base.precision import product_dtype
from quietstar.base.vocabulary import STATES, Blocks, LMHead


@torch.compiler.disable  # dynamo cannot trace an autograd.Function that reuses the head's scratch memory
def token_logprob(
    head: LMHead, hidden: Tensor, tokens: Tensor, temperature: float = 1.0, suppressed: Tensor | None = None
) -> Tensor:
    """Return log softmax(logits / temperature) [n] of tokens [n] at states [n, D], in float32.

    No logits are kept; the backward pass recomputes them. `suppressed` ids have probability 0.
    """
    return _TokenLogprob.apply(hidden, head.weight, head.bias, tokens, head, temperature, suppressed)


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens to score, the states that predict them, and the weight of each in a loss."""

    hidden: Tensor
    """[..., D]"""
    tokens: Tensor
    """[...]"""
    where: Tensor
    """[...] bool: the tokens that count"""
    weights: Tensor
    """[...]: the loss contains minus the sum of weights x logprob"""
    temperature: float = 1.0
    suppressed: Tensor | None = None
    """ids of probability 0, or None"""

    def scattered(self, values: Tensor) -> Tensor:
        """Scatter values [n] of the tokens that count into [...], 0 elsewhere."""
        return torch.zeros(self.tokens.shape, device=values.device).masked_scatter(self.where, values)


class EagerGradients:
    """The gradient of a loss with terms - weight x logprob, computed in the same sweep over the logits as their values.

    Logits are computed once instead of twice, and the LM head gets one gradient for everything a step does with the
    vocabulary.

    Args:
        head: the LM head.
        of_head: whether the head's own parameters get a gradient if they require one.
    """

    def __init__(self, head: LMHead, of_head: bool = True) -> None:
        self.head = head
        self.d_weight, self.d_bias = (
            torch.zeros(parameter.shape, device=parameter.device)
            if of_head and parameter is not None and parameter.requires_grad
            else None
            for parameter in (head.weight, head.bias)
        )
        self.hidden: list[Tensor] = []
        self.d_hidden: list[Tensor | None] = []

    @staticmethod
    def possible(head: LMHead) -> bool:
        """Whether gradients can be computed before the loss scale is known; in float16 they would underflow."""
        return torch.is_grad_enabled() and torch.float16 not in (product_dtype(head.weight), head.weight.dtype)

    def add(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Add the gradient of - weights x logprob, summed over the tokens that count, to that of the loss.

        Return the log-probabilities [...], without gradient, and the squared norm [...] of the gradient at each state.
        Both are 0 elsewhere, and the norm where states require no gradient.
        """
        head, hidden, tokens = self.head, scored.hidden[scored.where], scored.tokens[scored.where]
        blocks = Blocks(head, hidden, STATES)
        weights = scored.weights[scored.where] * (head.factor / head.divisor / scored.temperature)
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        logprob = torch.zeros(len(hidden), device=hidden.device)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for some in blocks:
                softmax = _Softmax(blocks, some, tokens[some], scored.temperature, scored.suppressed)
                logprob[some] = softmax.logprob
                add_(blocks, some, softmax, weights[some], d_hidden, self.d_weight, self.d_bias)
        self.hidden.append(hidden)
        self.d_hidden.append(d_hidden)
        squared = torch.zeros_like(logprob) if d_hidden is None else d_hidden.float().square().sum(-1)
        return scored.scattered(logprob), scored.scattered(squared)

    def attach(self, loss: Tensor) -> Tensor:
        """Return the loss [] with the gradient attached; one backward pass consumes it."""
        return _Attached.apply(loss, self, self.head.weight, self.head.bias, *self.hidden)


def masked_logprob(head: LMHead, scored: Scored) -> Tensor:
    """Return `token_logprob` [...] of the tokens that count, 0 elsewhere."""
    hidden, tokens = scored.hidden[scored.where], scored.tokens[scored.where]
    return scored.scattered(token_logprob(head, hidden, tokens, scored.temperature, scored.suppressed))


def squared_gradient(head: LMHead, scored: Scored) -> Tensor:
    """Return the squared norm [...] of the gradient of - weights x logprob at each state that counts, 0 elsewhere.

    States that do not require a gradient have 0. With gradients disabled, all states are taken to require one.
    """
    if torch.is_grad_enabled() and not scored.hidden.requires_grad:
        return torch.zeros(scored.tokens.shape, device=scored.hidden.device)
    with torch.enable_grad():
        states = scored.hidden.detach().requires_grad_()
        return EagerGradients(head, of_head=False).add(replace(scored, hidden=states))[1]


class _Softmax:
    """A block of logits, turned in place into unnormalized probabilities and their total."""

    def __init__(
        self, blocks: Blocks, some: slice, tokens: Tensor, temperature: float, suppressed: Tensor | None
    ) -> None:
        logits, head = blocks.logits(some), blocks.head
        self.n_states = len(tokens)
        self.tokens = blocks.padded(tokens)[None]
        # derivative of the softcap
        self.slope = None if head.softcap is None else 1 - (logits / head.softcap).square_()
        if temperature != 1:
            logits /= temperature
        if suppressed is not None:
            logits.index_fill_(0, suppressed, -torch.inf)
        chosen = logits.gather(0, self.tokens)
        highest = logits.amax(0, keepdim=True)
        self.p = logits.sub_(highest).exp_()
        self.total = self.p.sum(0, keepdim=True)
        self.logprob = (chosen - highest - self.total.log())[0, : self.n_states]

    def d_logits_(self) -> Tensor:
        """Return the gradient of - logprob times total and temperature, [V, states], in place of the probabilities."""
        self.p.scatter_add_(0, self.tokens, -self.total)
        d_logits = self.p if self.slope is None else self.p.mul_(self.slope)
        return d_logits[:, : self.n_states]


class BlockGradient(Protocol):
    """The gradients at the logits of a block of states."""

    n_states: int
    total: Tensor
    """[1, at least n_states]: what the gradients are to be divided by"""

    def d_logits_(self) -> Tensor:
        """Return the gradients [V, n_states], times the total; called once."""
        ...


def add_(
    blocks: Blocks,
    some: slice,
    softmax: BlockGradient,
    weights: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """Add the gradients of - weights x logprob of a block of states, weights [states], to those that are not None.

    Sums over blocks are in float32, whatever the dtype of the parameters.
    """
    scale, d_logits = weights[:, None], softmax.d_logits_()
    total = softmax.total[:, : softmax.n_states]
    if blocks.dtype == torch.float16:  # the total may overflow float16
        d_logits = d_logits / total
    else:
        scale = scale / total.T
    if d_bias is not None:
        d_bias += (d_logits @ scale).squeeze(1)
    d_logits = d_logits.to(blocks.dtype)
    if d_hidden is not None:
        d_hidden[some] = (d_logits.T @ blocks.weight).float() * scale
    if d_weight is not None:
        scaled = (blocks.hidden[some].float() * scale).to(blocks.dtype)
        if blocks.dtype == torch.float32:
            d_weight.addmm_(d_logits, scaled)
        else:
            d_weight += d_logits @ scaled


def gradients_of(
    blocks: Blocks,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    needed: Sequence[bool],
    of_block: Callable[[slice], BlockGradient],
    weights: Tensor,
) -> list[Tensor | None]:
    """Return the gradients of states, head weight and bias, summed over all blocks; None where none is needed.

    Args:
        blocks: of the states.
        inputs: states, weight and bias; the gradients have their dtypes.
        needed: of which a gradient is needed.
        of_block: gives the gradients at the logits of some states.
        weights: [n], as in `add_`.
    """
    pairs = list(zip(inputs, needed, strict=True))
    sums = [torch.zeros(x.shape, device=x.device) if x is not None and needs else None for x, needs in pairs]
    with torch.autocast(weights.device.type, enabled=False):
        for some in blocks:
            add_(blocks, some, of_block(some), weights[some], *sums)
    return [None if x is None or d is None else d.to(x.dtype) for d, x in zip(sums, inputs, strict=True)]


class _TokenLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        head: LMHead,
        temperature: float,
        suppressed: Tensor | None,
    ) -> Tensor:
        blocks = Blocks(head, hidden, STATES)
        with torch.autocast(hidden.device.type, enabled=False):
            values = [_Softmax(blocks, some, tokens[some], temperature, suppressed).logprob for some in blocks]
        ctx.save_for_backward(hidden, weight, bias, tokens, suppressed)
        ctx.settings = head, temperature, blocks.dtype
        return torch.cat(values) if values else torch.zeros(0, device=hidden.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprob: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, suppressed = ctx.saved_tensors
        head, temperature, dtype = ctx.settings
        blocks = Blocks(head, hidden, STATES, dtype=dtype)

        def softmax(some: slice) -> _Softmax:
            return _Softmax(blocks, some, tokens[some], temperature, suppressed)

        weights = -d_logprob * (head.factor / head.divisor / temperature)
        gradients = gradients_of(blocks, (hidden, weight, bias), ctx.needs_input_grad[:3], softmax, weights)
        return *gradients, None, None, None, None


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, eager: EagerGradients, weight: Tensor, bias: Tensor | None, *hidden: Tensor
    ) -> Tensor:
        ctx.eager = eager
        ctx.dtypes = [None if x is None else x.dtype for x in (weight, bias, *hidden)]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        eager, ctx.eager = ctx.eager, None
        if eager is None:
            raise RuntimeError(
                "a loss computed with loss_only=True can be backpropagated once, and this is the second time; "
                "leave loss_only out"
            )
        gradients = zip((eager.d_weight, eager.d_bias, *eager.d_hidden), ctx.dtypes, strict=True)
        return None, None, *(d if d is None else d.mul_(d_loss).to(dtype) for d, dtype in gradients)
