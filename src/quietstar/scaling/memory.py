"""Bytes on a GPU at each possible peak of a step. Pure formulas.

A step is: the base pass; K sampling steps; the last branch pass; losses, with the LM head's gradient; then the backward
pass, branches first. Activations are freed as gradients are computed, so the peak is at one of a few moments: the end
of the forward pass, after the backward pass of the last branch pass, or the end. Under gradient checkpointing, layers
keep only their inputs, keys and values, and branches are recomputed in parts.

Legend: see `quietstar.scaling.step`; a, r, e_h, e_k see `quietstar.scaling.kept`.
"""

from dataclasses import dataclass, fields

import torch

from quietstar.attention.sight import SCORES_AT_ONCE
from quietstar.base.vocabulary import BYTES_AT_ONCE, STATES
from quietstar.scaling.kept import Kept
from quietstar.scaling.shape import Shape
from quietstar.scaling.step import Step

FLOAT = 4
"""bytes of a float32 number"""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The precision that a model is trained in."""

    weights: torch.dtype
    """dtype of the base model's weights"""
    autocast: bool
    """whether bfloat16 autocast is on"""

    @property
    def weight_size(self) -> int:
        """Bytes of a weight."""
        return self.weights.itemsize

    @property
    def product_size(self) -> int:
        """Bytes of an operand of a matrix product, and of a gradient while it is summed over the passes."""
        return 2 if self.autocast else self.weights.itemsize


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes of weights, gradients and optimizer state on a GPU."""

    weights: float
    optimizer: float
    gradients: float = 0.0
    """throughout: the buckets that DDP averages gradients in"""
    earlier_gradients: float = 0.0
    """gradients accumulated from earlier batches of the step, until the backward pass is done"""
    last_gradients: float = 0.0
    """gradients at the end of the backward pass, instead of the earlier ones"""
    layer_gradients: float = 0.0
    """gradients of all layers while they are summed over the passes"""
    head_gradient: float = 0.0
    """float32 gradient of the LM head's weight while the losses are computed"""
    early_gradients: float = 0.0
    """gradients of LM head and mixing head while those of the layers are computed"""
    table_gradient: float = 0.0
    """gradient of the embeddings' weight"""
    gathered: float = 0.0
    """weights gathered from other GPUs in the forward pass"""
    gathered_again: float = 0.0
    """weights gathered from other GPUs while branches are recomputed"""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes in memory at one moment, by part."""

    when: str
    weights: float
    gradients: float
    optimizer: float
    text: float
    """activations of the base pass"""
    branches: float
    """activations of all branches"""
    head: float
    """LM head: a block of logits, scored states and their gradients"""

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self) if part.name != "when")


def highest(shape: Shape, step: Step, numbers: Numbers, held: Held, device: str = "cuda") -> MemoryUse:
    """Return the moment of peak memory in a step.

    The type of the device decides the size of a block of logits or scores.
    """
    kept = shape.kept(numbers.weights, autocast=numbers.autocast)
    moments = _moments_in_parts if step.checkpointing else _moments
    return max(moments(shape, step, numbers, held, kept, device), key=lambda moment: moment.total)


def _moments(shape: Shape, step: Step, numbers: Numbers, held: Held, kept: Kept, device: str) -> list[MemoryUse]:
    """Return the possible peaks without gradient checkpointing."""
    per_token = shape.n_layers * kept.layer + kept.rest
    text = step.base_tokens * (per_token + shape.D * kept.hidden_size)
    sampled = step.sampled_tokens * per_token + repeated_start(shape, step, kept)
    weights = held.weights + held.gathered + copies_of_weights(shape, step, numbers, kept)
    gradients = held.gradients + held.earlier_gradients
    flow = gradients_of_keys(shape, kept, step.base_tokens + step.sampled_tokens)
    flow += step.whole_tokens * shape.D * kept.hidden_size
    return [
        MemoryUse(
            when="end of the forward pass",
            weights=weights + copy_of_head(shape, numbers),
            gradients=gradients + held.head_gradient,
            optimizer=held.optimizer,
            text=text,
            branches=sampled + step.last_tokens * per_token + talk_states(shape, step, numbers, kept),
            head=scored_states(shape, step, kept) + blocks_of_logits(shape, step, numbers, device)[1],
        ),
        MemoryUse(
            when="the last branch pass has its gradients",
            weights=weights,
            gradients=gradients + held.early_gradients + held.layer_gradients,
            optimizer=held.optimizer,
            text=text,
            branches=sampled + flow + block_of_scores(shape, step, step.P * step.C, step.M + 1, device),
            head=0.0,
        ),
        _last_moment(shape, step, held, kept),
    ]


def _moments_in_parts(
    shape: Shape, step: Step, numbers: Numbers, held: Held, kept: Kept, device: str
) -> list[MemoryUse]:
    """Return the possible peaks under gradient checkpointing."""
    n, e = shape.n_layers, kept.hidden_size
    keys = 2 * n * shape.key_width * kept.key_size
    text = step.base_tokens * ((n + 1) * shape.D * e + keys + kept.rest)
    whole = step.whole_tokens * shape.D * e
    copies = n * kept.copies + copy_of_head(shape, numbers)
    weights = held.weights + held.gathered + copies
    earlier = held.gradients + held.earlier_gradients
    gradients = earlier + held.early_gradients + held.layer_gradients
    at_once = step.branches_at_once(n)
    sampled, block, block_kept = blocks_of_logits(shape, step, numbers, device)
    part = at_once * step.L * (n * kept.layer + kept.rest)
    part_moves = gradients_of_keys(shape, kept, step.base_tokens) + block_of_scores(
        shape, step, at_once, step.L, device
    )
    sampling = step.sampled_tokens * (keys + shape.D * e) + repeated_start(shape, step, kept)
    return [
        MemoryUse(
            when="end of sampling",
            weights=weights,
            gradients=earlier,
            optimizer=held.optimizer,
            text=text,
            branches=sampling + block_of_scores(shape, step, step.P * step.C, 1, device),
            head=sampled,
        ),
        MemoryUse(
            when="end of the forward pass",
            weights=weights,
            gradients=earlier + held.head_gradient,
            optimizer=held.optimizer,
            text=text,
            branches=whole + talk_states(shape, step, numbers, kept),
            head=block + scored_states(shape, step, kept),
        ),
        MemoryUse(
            when="a part of the branches is recomputed",
            weights=held.weights + held.gathered_again + copies,
            gradients=gradients,
            optimizer=held.optimizer,
            text=text,
            branches=3 * whole + part + part_moves,
            head=block_kept,
        ),
        MemoryUse(
            when="a layer of the text is recomputed",
            weights=weights,
            gradients=gradients,
            optimizer=held.optimizer,
            text=text + step.base_tokens * kept.layer,
            branches=gradients_of_keys(shape, kept, step.base_tokens) + whole,
            head=block_kept,
        ),
        _last_moment(shape, step, held, kept),
    ]


def _last_moment(shape: Shape, step: Step, held: Held, kept: Kept) -> MemoryUse:
    """Return the end of the backward pass, when all gradients exist; those of the embeddings come last.

    Tied embeddings have two gradients, one from the LM head, until they are added.
    """
    adds = 1 if shape.is_tied else 0
    looked_up = 0 if shape.lora else step.base_tokens + step.P * step.C * step.K
    return MemoryUse(
        when="end of the backward pass",
        weights=held.weights + held.gathered,
        gradients=held.gradients + held.last_gradients + adds * held.table_gradient,
        optimizer=held.optimizer,
        text=0.0,
        branches=2.0 * looked_up * shape.D * kept.hidden_size,
        head=0.0,
    )


def copies_of_weights(shape: Shape, step: Step, numbers: Numbers, kept: Kept) -> float:
    """Return the bytes of weights that autocast casts to bfloat16: trained ones once, frozen ones in every pass."""
    copies = shape.n_layers * kept.copies
    trained = numbers.product_size * shape.n_adapters if shape.lora and numbers.autocast else copies
    return trained + max(copies - trained, 0.0) * (step.K + 2)


def copy_of_head(shape: Shape, numbers: Numbers) -> float:
    """Return the bytes of the LM head's weight cast to the precision of products; 0 if it is stored in that."""
    return float(numbers.product_size * shape.n_table) if numbers.product_size != numbers.weight_size else 0.0


def product_for_head(shape: Shape, numbers: Numbers, device: str) -> float:
    """Return the bytes of the product added to the LM head's gradient, and of its float32 copy on a CPU.

    A float32 product is added in place.
    """
    if shape.lora or numbers.product_size == FLOAT:
        return 0.0
    return float(shape.n_table * (numbers.product_size + (FLOAT if device == "cpu" else 0)))


def repeated_start(shape: Shape, step: Step, kept: Kept) -> float:
    """Return the bytes of the start token's keys and values, computed once and repeated for every thought."""
    return gradients_of_keys(shape, kept, step.P * step.C) if step.K else 0.0


def gradients_of_keys(shape: Shape, kept: Kept, n_tokens: int) -> float:
    """Return the bytes of the keys and values of `n_tokens` tokens in all layers, or of their gradients."""
    return 2.0 * shape.n_layers * shape.key_width * n_tokens * kept.key_size


def talk_states(shape: Shape, step: Step, numbers: Numbers, kept: Kept) -> float:
    """Return the bytes of the states along all branches and of the mixing head's activations.

    The mixing head keeps both states concatenated, two hidden layers, and the mixed state.
    """
    predictions = step.P * step.C * step.M
    mixing = 4 * (2 if numbers.autocast else FLOAT)
    if kept.hidden_size != FLOAT:  # both states are mixed in float32
        mixing += 2 * FLOAT
    states = step.whole_tokens + step.C * step.M + predictions
    return float(shape.D * (states * kept.hidden_size + predictions * mixing))


def scored_states(shape: Shape, step: Step, kept: Kept) -> float:
    """Return the bytes of the states whose tokens are scored, and of their gradients."""
    return 2.0 * (step.base_states + step.talk_states + step.reinforced_states) * shape.D * kept.hidden_size


def block_of_logits(shape: Shape, n_states: int, device: str) -> float:
    """Return the number of logits of `n_states` states, at most of a block; see `quietstar.base.vocabulary`."""
    fitting = BYTES_AT_ONCE.get(device, BYTES_AT_ONCE["cpu"]) // (FLOAT * shape.V)
    return float(min(max(STATES, fitting - fitting % STATES), n_states) * shape.V)


def blocks_of_logits(shape: Shape, step: Step, numbers: Numbers, device: str) -> tuple[float, float, float]:
    """Return the bytes of the largest block of logits in sampling, of that in the losses, and of what is kept of it.

    Logits are float32, next to the product in its own precision. A CPU reuses a block's memory, and allocates a larger
    one next to it.
    """
    sampled = block_of_logits(shape, step.P * step.C if step.K else 0, device)
    n_states = max(-(-n // STATES) * STATES for n in (step.base_states, step.talk_states))
    block = block_of_logits(shape, n_states, device)
    beside = 0 if numbers.product_size == FLOAT else numbers.product_size
    added = product_for_head(shape, numbers, device)
    in_sampling, in_losses = sampled * (FLOAT + beside), block * (FLOAT + beside) + added
    if device != "cpu":
        return in_sampling, in_losses, 0.0
    kept = FLOAT * max(block, sampled)
    grown = FLOAT * (block + sampled) if sampled < block else 0.0
    return in_sampling, max(kept + block * beside + added, grown), kept


def block_of_scores(shape: Shape, step: Step, n_branches: int, n_steps: int, device: str) -> float:
    """Return the bytes of float32 scores of a block of branches and their gradients; see `attention.two_parts`."""
    all_scores = shape.config.num_attention_heads * n_branches * n_steps * step.S
    return 2.0 * FLOAT * min(all_scores, SCORES_AT_ONCE.get(device, SCORES_AT_ONCE["cpu"]))
