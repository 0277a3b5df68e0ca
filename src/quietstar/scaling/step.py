"""How many tokens one forward and backward pass has, of each kind, and the arithmetic that they take. Pure formulas.

Legend: B rows, S tokens in a row, P passes, M true tokens after each thought, K sampled tokens of a thought, C columns
of all rows together, n layers, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

from quietstar.scaling.shape import Shape
from quietstar.talk import SHARDED_PARTS

BACKWARD = 2.5
"""times the forward pass's attention: scores again, then four products in place of two"""

REINFORCED = 0.5
"""share of the thoughts that are better than their position's mean, the only ones whose words are scored"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one forward and backward pass over rows that are full does."""

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
    """whether weights are spread over GPUs: branches are then made again in SHARDED_PARTS"""

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
        """Columns: the share of each row's labels, and at least one where there is a share at all."""
        per_row = round(self.fraction * (self.S - 1))
        return self.B * max(per_row, 1 if self.fraction > 0 else 0)

    @property
    def base_tokens(self) -> int:
        """T: tokens of the base pass."""
        return self.B * self.S

    @property
    def sampled_tokens(self) -> int:
        """Tokens of the K sampling steps: start once for each column, as it is the same in every pass."""
        return self.C * (1 + (self.K - 1) * self.P) if self.K else 0

    @property
    def last_tokens(self) -> int:
        """Tokens of the last branch pass: the last word (or start, where no word is sampled), end, M - 1 true ones."""
        return self.P * self.C * (self.M + 1)

    @property
    def whole_tokens(self) -> int:
        """Tokens of whole branches, made in parts under gradient checkpointing."""
        return self.P * self.C * self.L

    @property
    def branch_tokens(self) -> int:
        """Branch tokens that pass forwards with gradient."""
        return self.whole_tokens if self.checkpointing else self.sampled_tokens + self.last_tokens

    @property
    def base_states(self) -> int:
        """States that predict the text without thoughts."""
        return self.B * (self.S - 1)

    @property
    def talk_states(self) -> int:
        """States that predict true tokens after a thought: fewer than P C M, as texts end."""
        ahead = sum(max(self.S - 1 - k, 0) for k in range(self.M))
        return round(self.P * self.C * ahead / (self.S - 1))

    @property
    def word_states(self) -> int:
        """States whose sampled token is reinforced: of columns with all their M labels, the better thoughts."""
        return round(REINFORCED * self.P * self.C * self.K * max(self.S - self.M, 0) / (self.S - 1))

    @property
    def drawing_states(self) -> int:
        """States that a token is drawn from."""
        return self.sampled_tokens

    def n_parts(self, n_layers: int) -> int:
        """Parts of the columns under gradient checkpointing: twice as many as layers, where there are so many."""
        if self.C == 0 or not self.checkpointing:
            return 0
        return SHARDED_PARTS if self.sharded else min(2 * n_layers, self.C)

    def columns_at_once(self, n_layers: int) -> int:
        """Columns of the largest part."""
        return -(-self.C // max(1, self.n_parts(n_layers)))


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of a step, two for each product that is added."""

    layers: float
    """matrices of the layers"""
    attention: float
    vocabulary: float
    """LM head: drawing words, and predictions that have a label"""
    mixing: float
    """mixing head"""

    @property
    def total(self) -> float:
        """Of the step."""
        return self.layers + self.attention + self.vocabulary + self.mixing


def flops(shape: Shape, step: Step) -> Flops:
    """The arithmetic of one forward and backward pass.

    A matrix of m numbers takes 2 m for a token forwards, 2 m for the gradient of its input, and 2 m for its own where
    it trains. With low-rank adapters only they have the last; under gradient checkpointing the text and the branches go
    forwards twice, and the sampling steps once beside.
    """
    forward = 2.0 * (shape.n_matrices + shape.n_adapters)
    once = 2 * forward + 2.0 * (shape.n_adapters or shape.n_matrices)
    again = 2 if step.checkpointing else 1
    learned = step.base_tokens + step.branch_tokens
    layers = learned * (once + (again - 1) * forward)
    seen = attention_forward(shape, step)
    attention = seen * (again + BACKWARD)
    if step.checkpointing:
        layers += step.sampled_tokens * forward
        attention += attention_of_branches(shape, step, step.sampled_tokens, step.K)
    head = 2.0 * shape.n_table
    scored = step.base_states + step.talk_states + step.word_states
    vocabulary = head * (step.drawing_states + scored * (2 if shape.lora else 3))
    vocabulary += head * 2 * step.word_states  # a balanced policy weight measures the policy term's gradient first
    mixing = 6.0 * step.P * step.C * step.M * (3 * shape.D**2 + shape.D)
    return Flops(layers=layers, attention=attention, vocabulary=vocabulary, mixing=mixing)


def attention_forward(shape: Shape, step: Step) -> float:
    """Scores and weighted values of text and branches, forwards."""
    text = 4.0 * shape.n_layers * shape.query_width * step.base_tokens * step.S / 2
    return text + attention_of_branches(shape, step, step.branch_tokens, step.L)


def attention_of_branches(shape: Shape, step: Step, n_tokens: int, length: int) -> float:
    """Of so many branch tokens: half a row of text on average, and half of their own branch."""
    return 4.0 * shape.n_layers * shape.query_width * n_tokens * (step.S + length) / 2
