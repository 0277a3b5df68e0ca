"""Numbers of tokens in one forward and backward pass, by kind, and their arithmetic. Pure formulas.

Legend: B sequences of S tokens, P passes, M true tokens after each thought, K sampled tokens of a thought, C columns of
all sequences together, n layers, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

from quietstar.scaling.shape import Shape
from quietstar.talk import n_parts
from quietstar.think import GRAPH_AT_MOST

BACKWARD = 2.5
"""cost of attention's backward pass relative to its forward pass: scores are recomputed, then four products, not two"""

REINFORCED = 0.5
"""fraction of thoughts that are better than their position's mean; only their tokens are scored"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Sizes of one forward and backward pass over full sequences."""

    B: int
    S: int
    n_ahead: int = 8
    M: int = 4
    P: int = 2
    fraction: float = 1.0
    """think_fraction"""
    checkpointing: bool = False
    """gradient checkpointing"""
    sharded: bool = False
    """whether weights are sharded over GPUs"""
    samples: bool = True
    """whether the model writes its thoughts; those of a control are given, and take no sampling steps"""
    frozen_base: bool = False
    """whether only heads, thought embeddings and adapters of branches train"""

    @property
    def K(self) -> int:  # noqa: N802
        """Sampled tokens of a thought."""
        return self.n_ahead - 2

    @property
    def L(self) -> int:  # noqa: N802
        """Tokens of a branch."""
        return self.n_ahead + self.M - 1

    @property
    def C(self) -> int:  # noqa: N802
        """Columns: the fraction of each sequence's labels, and at least one if the fraction is above 0."""
        per_row = round(self.fraction * (self.S - 1))
        return self.B * max(per_row, 1 if self.fraction > 0 else 0)

    @property
    def base_tokens(self) -> int:
        """T: tokens of the base pass."""
        return self.B * self.S

    @property
    def sampled_tokens(self) -> int:
        """Tokens of the K sampling steps; start counts once for each column, as all passes share it."""
        return self.C * (1 + (self.K - 1) * self.P) if self.K and self.samples else 0

    @property
    def last_tokens(self) -> int:
        """Tokens of the last branch pass: the last sampled token (or start if K is 0), end, and M - 1 true tokens."""
        return self.P * self.C * (self.M + 1)

    @property
    def whole_tokens(self) -> int:
        """Tokens of whole branches; recomputed in parts under gradient checkpointing."""
        return self.P * self.C * self.L

    @property
    def branch_tokens(self) -> int:
        """Branch tokens in forward passes with gradient."""
        return self.whole_tokens if self.grows_whole else self.sampled_tokens + self.last_tokens

    @property
    def grows_whole(self) -> bool:
        """Whether whole branches grow with gradient, after thoughts that were given or sampled without it."""
        return self.checkpointing or self.K > GRAPH_AT_MOST or not self.samples

    @property
    def reads_without_gradient(self) -> bool:
        """Whether no gradient passes the text. Checkpointed layers compute one all the same."""
        return self.frozen_base and not self.checkpointing

    @property
    def base_states(self) -> int:
        """States that predict the text without thoughts."""
        return self.B * (self.S - 1)

    @property
    def talk_states(self) -> int:
        """States that predict true tokens after a thought; fewer than P C M at the end of texts."""
        ahead = sum(max(self.S - 1 - k, 0) for k in range(self.M))
        return round(self.P * self.C * ahead / (self.S - 1))

    @property
    def reinforced_states(self) -> int:
        """States whose sampled token is reinforced: those of the better thoughts at columns with all M labels."""
        return self.samples * round(REINFORCED * self.P * self.C * self.K * max(self.S - self.M, 0) / (self.S - 1))

    def n_parts(self, n_layers: int) -> int:
        """Return the number of parts of the branches under gradient checkpointing; see `quietstar.talk.n_parts`."""
        if self.C == 0 or not self.checkpointing:
            return 0
        of_columns, of_passes = n_parts(self.C, self.P, self.L, n_layers, self.sharded)
        return of_columns * of_passes

    def branches_at_once(self, n_layers: int) -> int:
        """Return the number of branches of the largest part."""
        of_columns, of_passes = n_parts(self.C, self.P, self.L, n_layers, self.sharded)
        return -(-self.C // of_columns) * -(-self.P // of_passes)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of a step; a multiply-add counts as two."""

    layers: float
    """matrices of the layers"""
    attention: float
    vocabulary: float
    """LM head: sampling, and predictions with a label"""
    mixing: float
    """mixing head"""

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.layers + self.attention + self.vocabulary + self.mixing


def flops(shape: Shape, step: Step) -> Flops:
    """Return the arithmetic of one forward and backward pass.

    For each token, a matrix of m numbers takes 2 m in the forward pass, 2 m for the gradient of its input, and 2 m for
    its own gradient if it trains; with low-rank adapters only they train. Gradient checkpointing adds a second forward
    pass over text and branches, and one over the sampling steps, as long thoughts do.
    """
    forward = 2.0 * (shape.n_matrices + shape.n_adapters)
    once = 2 * forward + 2.0 * (shape.n_adapters or shape.n_matrices)
    again = 2 if step.checkpointing else 1
    layers = step.branch_tokens * (once + (again - 1) * forward)
    attention = attention_of_branches(shape, step, step.branch_tokens, step.L) * (again + BACKWARD)
    if step.reads_without_gradient:
        layers += step.base_tokens * 2.0 * shape.n_matrices
        attention += attention_of_text(shape, step)
    else:
        layers += step.base_tokens * (once + (again - 1) * forward)
        attention += attention_of_text(shape, step) * (again + BACKWARD)
    if step.grows_whole:
        layers += step.sampled_tokens * forward
        attention += attention_of_branches(shape, step, step.sampled_tokens, step.K)
    head = 2.0 * shape.n_table
    learned, read = step.talk_states + step.reinforced_states, step.sampled_tokens
    if step.reads_without_gradient:
        read += step.base_states
    else:
        learned += step.base_states
    vocabulary = head * (read + learned * (2 if shape.lora else 3))
    # A balanced policy weight measures the policy term's gradient first.
    vocabulary += head * 2 * step.reinforced_states
    mixing = 6.0 * step.P * step.C * step.M * (3 * shape.D**2 + shape.D)
    return Flops(layers=layers, attention=attention, vocabulary=vocabulary, mixing=mixing)


def attention_of_text(shape: Shape, step: Step) -> float:
    """Return the operations of the text's attention in the forward pass."""
    return 4.0 * shape.n_layers * shape.query_width * step.base_tokens * step.S / 2


def attention_of_branches(shape: Shape, step: Step, n_tokens: int, length: int) -> float:
    """Return the operations of branch tokens' attention in a forward pass: on average to half of text and branch."""
    return 4.0 * shape.n_layers * shape.query_width * n_tokens * (step.S + length) / 2
