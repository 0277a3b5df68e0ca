"""Log-probabilities of given tokens, and what descends from them, from the logits of a few states at a time.

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


@torch.compiler.disable  # dynamo cannot trace an autograd.Function that leaves memory to the head for the next block
def token_logprob(
    head: LMHead, hidden: Tensor, tokens: Tensor, temperature: float = 1.0, suppressed: Tensor | None = None
) -> Tensor:
    """log softmax(logits / temperature) of the given tokens, in float32. No logits are kept: a gradient makes them
    again.

    Args:
        head: the LM head.
        hidden: [n, D]
        tokens: [n]
        temperature: above 0.
        suppressed: ids that have no probability, None for none.

    Returns:
        [n]
    """
    return _TokenLogprob.apply(hidden, head.weight, head.bias, tokens, head, temperature, suppressed)


class Descent:
    """A weighted sum of log-probabilities, and its gradients, made while each block of logits is there.

    Logits are made once, not twice, and the LM head has one gradient for all that a step does with the vocabulary.

    Args:
        head: the LM head.
        of_head: whether the head's own parameters get a gradient, where they have one at all.
    """

    def __init__(self, head: LMHead, of_head: bool = True) -> None:
        self.head = head
        self.d_weight, self.d_bias = (
            torch.zeros(of.shape, device=of.device) if of_head and of is not None and of.requires_grad else None
            for of in (head.weight, head.bias)
        )
        self.hidden: list[Tensor] = []
        self.d_hidden: list[Tensor | None] = []

    @staticmethod
    def serves(head: LMHead) -> bool:
        """Whether gradients can be made before a loss scale is known: float16 has no room for that."""
        return torch.is_grad_enabled() and torch.float16 not in (product_dtype(head.weight), head.weight.dtype)

    def logprob(
        self,
        hidden: Tensor,
        tokens: Tensor,
        weights: Tensor,
        temperature: float = 1.0,
        suppressed: Tensor | None = None,
    ) -> Tensor:
        """[n] as `token_logprob` has them, without gradient; the loss takes in - weights x logprob, weights [n]."""
        head, blocks = self.head, Blocks(self.head, hidden, STATES)
        weights = weights * (head.factor / head.divisor / temperature)
        d_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        values = []
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for some in blocks:
                made = _Softmax(blocks, some, tokens[some], temperature, suppressed)
                values.append(made.logprob)
                _add_(blocks, some, made, weights[some], d_hidden, self.d_weight, self.d_bias)
        self.hidden.append(hidden)
        self.d_hidden.append(d_hidden)
        return torch.cat(values) if values else torch.zeros(0, device=hidden.device)

    def squared_gradients(self) -> list[Tensor]:
        """[n] for each call of `logprob`: the squared length of the gradient at each state; 0 without a gradient."""
        return [
            torch.zeros(len(hidden), device=hidden.device) if d is None else d.float().square().sum(-1)
            for hidden, d in zip(self.hidden, self.d_hidden, strict=True)
        ]

    def attach(self, loss: Tensor) -> Tensor:
        """The loss [], its value as computed from the log-probabilities, with the gradients behind it.

        One backward pass uses them up.
        """
        return _Attached.apply(loss, self, self.head.weight, self.head.bias, *self.hidden)


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens that are scored, the states that predict them, and what each weighs in a loss."""

    hidden: Tensor
    """[..., D]"""
    tokens: Tensor
    """[...]"""
    where: Tensor
    """[...] bool: which of them count"""
    weights: Tensor
    """[...]: the loss takes in - weights x logprob"""
    temperature: float = 1.0
    suppressed: Tensor | None = None
    """ids that have no probability, None for none"""

    def scattered(self, values: Tensor) -> Tensor:
        """[n] values of those that count -> [...], 0 elsewhere."""
        return torch.zeros(self.tokens.shape, device=values.device).masked_scatter(self.where, values)


def masked_logprob(head: LMHead, scored: Scored, descent: Descent | None = None) -> Tensor:
    """[...] log-probabilities of the tokens that count, 0 elsewhere: by `Descent.logprob`, else `token_logprob`."""
    where, how = scored.where, (scored.temperature, scored.suppressed)
    hidden, tokens = scored.hidden[where], scored.tokens[where]
    if descent is None:
        values = token_logprob(head, hidden, tokens, *how)
    else:
        values = descent.logprob(hidden, tokens, scored.weights[where], *how)
    return scored.scattered(values)


def squared_gradient(head: LMHead, scored: Scored) -> Tensor:
    """[...] squared length of the gradient of - weights x logprob at each state that counts, 0 elsewhere.

    States that nothing trains have none. Where gradients are off altogether, which those are is not known.
    """
    if torch.is_grad_enabled() and not scored.hidden.requires_grad:
        return torch.zeros(scored.tokens.shape, device=scored.hidden.device)
    probe, where = Descent(head, of_head=False), scored.where
    states = scored.hidden[where].detach().requires_grad_()
    probe.logprob(states, scored.tokens[where], scored.weights[where], scored.temperature, scored.suppressed)
    return scored.scattered(probe.squared_gradients()[0])


class _Softmax:
    """A block of logits turned, in place, into probabilities times a total."""

    def __init__(
        self, blocks: Blocks, some: slice, tokens: Tensor, temperature: float, suppressed: Tensor | None
    ) -> None:
        logits, head = blocks.logits(some), blocks.head
        self.n_states = len(tokens)
        self.tokens = blocks.filled(tokens)[None]
        # what bending the logits does to their gradient
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
        """In place of the probabilities: [V, states], the gradient of - logprob, times total and temperature."""
        self.p.scatter_add_(0, self.tokens, -self.total)
        d_logits = self.p if self.slope is None else self.p.mul_(self.slope)
        return d_logits[:, : self.n_states]


def _add_(
    blocks: Blocks,
    some: slice,
    made: _Softmax,
    weights: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """Add to gradients, where there are any, those of - weights x logprob of some states, weights [states].

    Sums over blocks are in float32, whatever the parameters are in.
    """
    scale, d_logits = weights[:, None], made.d_logits_()
    total = made.total[:, : made.n_states]
    if blocks.dtype == torch.float16:  # which a total may be too large for
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
        gradients = [torch.zeros(of.shape, device=of.device) if needs else None for of, needs in needed]
        with torch.autocast(hidden.device.type, enabled=False):
            for some in blocks:
                made = _Softmax(blocks, some, tokens[some], temperature, suppressed)
                _add_(blocks, some, made, weights[some], *gradients)
        pairs = zip(gradients, (hidden, weight, bias), strict=True)
        return *(d if d is None else d.to(of.dtype) for d, of in pairs), None, None, None, None


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, descent: Descent, weight: Tensor, bias: Tensor | None, *hidden: Tensor
    ) -> Tensor:
        ctx.descent = descent
        ctx.dtypes = [None if of is None else of.dtype for of in (weight, bias, *hidden)]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        descent, ctx.descent = ctx.descent, None
        if descent is None:
            raise RuntimeError(
                "a loss made with loss_only=True was to be differentiated a second time; one backward pass uses its "
                "gradients up: leave loss_only out"
            )
        made = (descent.d_weight, descent.d_bias, *descent.d_hidden)
        return None, None, *(d if d is None else d.mul_(d_loss).to(of) for d, of in zip(made, ctx.dtypes, strict=True))
