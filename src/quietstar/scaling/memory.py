"""Bytes on a GPU at each moment of a step that could be its highest. Pure formulas.

A step goes so: the base pass; K sampling steps; the last branch pass; losses, with the LM head's gradient; then all of
it backwards, the branches first. What a pass keeps goes while its gradients come, so the highest moment is one of a
few: at the end of the forward pass, after the last branch pass has its gradients, or at the end. Under gradient
checkpointing layers keep their inputs, keys and values alone, and branches are made again in parts.

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
"""bytes of a float32"""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """In which precision a model is trained."""

    weights: torch.dtype
    """of the base model's weights"""
    autocast: bool
    """whether bfloat16 autocast is at work"""

    @property
    def weight_size(self) -> int:
        """Bytes of a weight."""
        return self.weights.itemsize

    @property
    def product_size(self) -> int:
        """Bytes of a factor of a matrix product, and of a gradient while it is summed over the passes."""
        return 2 if self.autocast else self.weights.itemsize


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes that a GPU holds whatever is being computed."""

    weights: float
    optimizer: float
    gradients: float = 0.0
    """throughout: buckets that gradients are averaged in"""
    earlier_gradients: float = 0.0
    """beside those, of the step's batches before, until all passes have been through"""
    last_gradients: float = 0.0
    """in their place, when all passes have been through"""
    layer_gradients: float = 0.0
    """of all layers, while they are summed over the passes"""
    head_gradient: float = 0.0
    """of the LM head's weight in float32, while the losses are made"""
    early_gradients: float = 0.0
    """of LM head and mixing head, while those of the layers are made"""
    table_gradient: float = 0.0
    """of the embeddings' weight"""
    gathered: float = 0.0
    """weights of other GPUs' shards, forwards"""
    gathered_again: float = 0.0
    """the same while branches are made again"""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """What lies in memory at one moment, in bytes."""

    when: str
    weights: float
    gradients: float
    optimizer: float
    text: float
    """kept for the gradient of the base pass"""
    branches: float
    """kept for the gradients of all branches"""
    head: float
    """LM head: a block of logits, states that are scored and their gradients"""

    @property
    def total(self) -> float:
        """All together."""
        return sum(getattr(self, of.name) for of in fields(self) if of.name != "when")


def highest(shape: Shape, step: Step, numbers: Numbers, held: Held, device: str = "cuda") -> MemoryUse:
    """The moment of a step at which memory is fullest.

    Args:
        shape: the model.
        step: one forward and backward pass.
        numbers: their precision.
        held: what lies there throughout.
        device: type of the device, which says how large a block of logits or scores is.
    """
    kept = shape.kept(numbers.weights, autocast=numbers.autocast)
    made = _moments_in_parts if step.checkpointing else _moments
    return max(made(shape, step, numbers, held, kept, device), key=lambda moment: moment.total)


def _moments(shape: Shape, step: Step, numbers: Numbers, held: Held, kept: Kept, device: str) -> list[MemoryUse]:
    """Without gradient checkpointing."""
    of_token = shape.n_layers * kept.layer + kept.rest
    text = step.base_tokens * (of_token + shape.D * kept.hidden_size)
    sampled = step.sampled_tokens * of_token + repeated_start(shape, step, kept)
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
            branches=sampled + step.last_tokens * of_token + talk_states(shape, step, numbers, kept),
            head=scored_states(shape, step, kept) + blocks_of_logits(shape, step, numbers, device)[1],
        ),
        MemoryUse(
            when="the last branch pass has its gradients",
            weights=weights,
            gradients=gradients + held.early_gradients + held.layer_gradients,
            optimizer=held.optimizer,
            text=text,
            branches=sampled + flow + block_of_scores(shape, step, step.C, step.M + 1, device),
            head=0.0,
        ),
        _last_moment(shape, step, held, kept),
    ]


def _moments_in_parts(
    shape: Shape, step: Step, numbers: Numbers, held: Held, kept: Kept, device: str
) -> list[MemoryUse]:
    """Under gradient checkpointing."""
    n, e = shape.n_layers, kept.hidden_size
    keys = 2 * n * shape.key_width * kept.key_size
    text = step.base_tokens * ((n + 1) * shape.D * e + keys + kept.rest)
    whole = step.whole_tokens * shape.D * e
    copies = n * kept.copies + copy_of_head(shape, numbers)
    weights = held.weights + held.gathered + copies
    earlier = held.gradients + held.earlier_gradients
    gradients = earlier + held.early_gradients + held.layer_gradients
    at_once = step.columns_at_once(n)
    drawn, block, block_kept = blocks_of_logits(shape, step, numbers, device)
    part = at_once * step.P * step.L * (n * kept.layer + kept.rest)
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
            branches=sampling + block_of_scores(shape, step, step.C, 1, device),
            head=drawn,
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
            when="a part of the branches is made again",
            weights=held.weights + held.gathered_again + copies,
            gradients=gradients,
            optimizer=held.optimizer,
            text=text,
            branches=3 * whole + part + part_moves,
            head=block_kept,
        ),
        MemoryUse(
            when="a layer of the text is made again",
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
    """All gradients are there, those of the embeddings last.

    Tied embeddings have two, one from the LM head: the second one is there until it is added to the first.
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
    """Weights that autocast made in bfloat16: those that train once, frozen ones anew in each pass."""
    copies = shape.n_layers * kept.copies
    trained = numbers.product_size * shape.n_adapters if shape.lora and numbers.autocast else copies
    return trained + max(copies - trained, 0.0) * (step.K + 2)


def copy_of_head(shape: Shape, numbers: Numbers) -> float:
    """The LM head's weight in the precision of products, where it is stored in another one."""
    return float(numbers.product_size * shape.n_table) if numbers.product_size != numbers.weight_size else 0.0


def product_for_head(shape: Shape, numbers: Numbers, device: str) -> float:
    """What a block of states adds to the gradient of the LM head's weight, and a CPU's copy of that in float32.

    A product in float32 is added in place.
    """
    if shape.lora or numbers.product_size == FLOAT:
        return 0.0
    return float(shape.n_table * (numbers.product_size + (FLOAT if device == "cpu" else 0)))


def repeated_start(shape: Shape, step: Step, kept: Kept) -> float:
    """Keys and values of start, once for each pass: it went through the layers once for all of them."""
    return gradients_of_keys(shape, kept, step.P * step.C) if step.K else 0.0


def gradients_of_keys(shape: Shape, kept: Kept, n_tokens: int) -> float:
    """Keys and values of so many tokens in all layers, or their gradients, which later passes add to."""
    return 2.0 * shape.n_layers * shape.key_width * n_tokens * kept.key_size


def talk_states(shape: Shape, step: Step, numbers: Numbers, kept: Kept) -> float:
    """States along all branches, and what mixing keeps: two states side by side, two hidden layers, the mixed state."""
    predictions = step.P * step.C * step.M
    mixing = 4 * (2 if numbers.autocast else FLOAT)
    if kept.hidden_size != FLOAT:  # both states are mixed in float32
        mixing += 2 * FLOAT
    states = step.whole_tokens + step.C * step.M + predictions
    return float(shape.D * (states * kept.hidden_size + predictions * mixing))


def scored_states(shape: Shape, step: Step, kept: Kept) -> float:
    """States whose tokens are scored, and their gradients."""
    return 2.0 * (step.base_states + step.talk_states + step.word_states) * shape.D * kept.hidden_size


def block_of_logits(shape: Shape, n_states: int, device: str) -> float:
    """Numbers in the logits of so many states, a block at most; see `quietstar.base.vocabulary`."""
    fitting = BYTES_AT_ONCE.get(device, BYTES_AT_ONCE["cpu"]) // (FLOAT * shape.V)
    return float(min(max(STATES, fitting - fitting % STATES), n_states) * shape.V)


def blocks_of_logits(shape: Shape, step: Step, numbers: Numbers, device: str) -> tuple[float, float, float]:
    """The largest block that words are drawn from, that of the losses, and what of it is kept until the end.

    Logits are float32, with what a product makes of them in another precision beside. A CPU keeps a block's float32,
    and makes a larger one beside it.
    """
    drawn = block_of_logits(shape, step.P * step.C if step.K else 0, device)
    n_states = max(-(-of // STATES) * STATES for of in (step.base_states, step.talk_states))
    block = block_of_logits(shape, n_states, device)
    beside = 0 if numbers.product_size == FLOAT else numbers.product_size
    added = product_for_head(shape, numbers, device)
    draws, scores = drawn * (FLOAT + beside), block * (FLOAT + beside) + added
    if device != "cpu":
        return draws, scores, 0.0
    kept = FLOAT * max(block, drawn)
    return draws, max(kept + block * beside + added, FLOAT * (block + drawn) if drawn < block else 0.0), kept


def block_of_scores(shape: Shape, step: Step, n_columns: int, n_steps: int, device: str) -> float:
    """Scores of a block of columns and their gradients, in float32; see `quietstar.attention.two_parts`."""
    all_scores = shape.config.num_attention_heads * step.P * n_columns * n_steps * step.S
    return 2.0 * FLOAT * min(all_scores, SCORES_AT_ONCE.get(device, SCORES_AT_ONCE["cpu"]))
