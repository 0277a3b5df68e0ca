"""Log-probabilities of given tokens and their gradients, from the logits of a few states at a time.

Softmax, log and sums are in float32 whatever the LM head's dtype.

Legend: n states, D hidden size, V vocabulary.

    logprob = logits[token] / temperature - lse          d_logits = (one-hot - p) d_logprob / temperature
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quietstar.base.precision import product_dtype
from quietstar.base.vocabulary import STATES, Blocks, LMHead


@torch.compiler.disable  # dynamo cannot trace an autograd.Function that reuses the head's scratch memory
def token_logprob(
    head: LMHead, hidden: Tensor, tokens: Tensor, temperature: float = 1.0, suppressed: Tensor | None = None
) -> Tensor:
    """Return log softmax(logits / temperature) of the given tokens, in float32.

    No logits are kept; the backward pass recomputes them.

    Args:
        head: the LM head.
        hidden: [n, D]
        tokens: [n]
        temperature: above 0.
        suppressed: ids of probability 0, or None.

    Returns:
        [n]
    """
    return _TokenLogprob.apply(hidden, head.weight, head.bias, tokens, head, temperature, suppressed)


class Descent:
    """A weighted sum of log-probabilities whose gradients are computed while each block of logits is in memory.

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
    def serves(head: LMHead) -> bool:
        """Whether gradients can be computed before the loss scale is known; in float16 they would underflow."""
        return torch.is_grad_enabled() and torch.float16 not in (product_dtype(head.weight), head.weight.dtype)

    def logprob(
        self,
        hidden: Tensor,
        tokens: Tensor,
        weights: Tensor,
        temperature: float = 1.0,
        suppressed: Tensor | None = None,
    ) -> Tensor:
        """Return `token_logprob` [n] without gradient, and add - weights x logprob, weights [n], to the loss."""
        head, blocks = self.head, Blocks(self.head, hidden, STATES)
        weights = weights * (head.factor / head.divisor / temperature)
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        values = []
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for some in blocks:
                softmax = _Softmax(blocks, some, tokens[some], temperature, suppressed)
                values.append(softmax.logprob)
                _add_(blocks, some, softmax, weights[some], d_hidden, self.d_weight, self.d_bias)
        self.hidden.append(hidden)
        self.d_hidden.append(d_hidden)
        return torch.cat(values) if values else torch.zeros(0, device=hidden.device)

    def squared_gradients(self) -> list[Tensor]:
        """Return the squared norm of the gradient at each state, [n] for each call of `logprob`; 0 without gradient."""
        return [
            torch.zeros(len(hidden), device=hidden.device) if d is None else d.float().square().sum(-1)
            for hidden, d in zip(self.hidden, self.d_hidden, strict=True)
        ]

    def attach(self, loss: Tensor) -> Tensor:
        """Return the loss [] with the collected gradients attached; one backward pass consumes them."""
        return _Attached.apply(loss, self, self.head.weight, self.head.bias, *self.hidden)


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
    """[...]: the loss contains - weights x logprob"""
    temperature: float = 1.0
    suppressed: Tensor | None = None
    """ids of probability 0, or None"""

    def scattered(self, values: Tensor) -> Tensor:
        """Scatter values [n] of the tokens that count into [...], 0 elsewhere."""
        return torch.zeros(self.tokens.shape, device=values.device).masked_scatter(self.where, values)


def masked_logprob(head: LMHead, scored: Scored, descent: Descent | None = None) -> Tensor:
    """Return log-probabilities [...] of the tokens that count, 0 elsewhere.

    They come from `descent` if one is given, and from `token_logprob` otherwise.
    """
    where, how = scored.where, (scored.temperature, scored.suppressed)
    hidden, tokens = scored.hidden[where], scored.tokens[where]
    if descent is None:
        values = token_logprob(head, hidden, tokens, *how)
    else:
        values = descent.logprob(hidden, tokens, scored.weights[where], *how)
    return scored.scattered(values)


def squared_gradient(head: LMHead, scored: Scored) -> Tensor:
    """Return the squared norm [...] of the gradient of - weights x logprob at each state that counts, 0 elsewhere.

    States that do not require a gradient have 0. With gradients disabled, all states are taken to require one.
    """
    if torch.is_grad_enabled() and not scored.hidden.requires_grad:
        return torch.zeros(scored.tokens.shape, device=scored.hidden.device)
    probe, where = Descent(head, of_head=False), scored.where
    states = scored.hidden[where].detach().requires_grad_()
    probe.logprob(states, scored.tokens[where], scored.weights[where], scored.temperature, scored.suppressed)
    return scored.scattered(probe.squared_gradients()[0])


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


def _add_(
    blocks: Blocks,
    some: slice,
    softmax: _Softmax,
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
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=dtype != weight.dtype):
            blocks = Blocks(head, hidden, STATES)
        weights = -d_logprob * (head.factor / head.divisor / temperature)
        needed = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        gradients = [torch.zeros(x.shape, device=x.device) if needs else None for x, needs in needed]
        with torch.autocast(hidden.device.type, enabled=False):
            for some in blocks:
                softmax = _Softmax(blocks, some, tokens[some], temperature, suppressed)
                _add_(blocks, some, softmax, weights[some], *gradients)
        pairs = zip(gradients, (hidden, weight, bias), strict=True)
        return *(d if d is None else d.to(x.dtype) for d, x in pairs), None, None, None, None


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, descent: Descent, weight: Tensor, bias: Tensor | None, *hidden: Tensor
    ) -> Tensor:
        ctx.descent = descent
        ctx.dtypes = [None if x is None else x.dtype for x in (weight, bias, *hidden)]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        descent, ctx.descent = ctx.descent, None
        if descent is None:
            raise RuntimeError(
                "a loss computed with loss_only=True can be backpropagated once, and this is the second time; "
                "leave loss_only out"
            )
        gradients = zip((descent.d_weight, descent.d_bias, *descent.d_hidden), ctx.dtypes, strict=True)
        return None, None, *(d if d is None else d.mul_(d_loss).to(dtype) for d, dtype in gradients)
