"""What was thought while a text was generated, and why.

Legend: B rows that are decoded together (beams apart), N sequences returned, T generated tokens, K sampled tokens of a
thought, k likeliest tokens, V vocabulary, R rows that think.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from quietstar.output import tokens_of
from quietstar.policy import Decision, ThinkPolicy

FINISHED = "the sequence has ended"


@dataclass(slots=True)
class TopTokens:
    """The likeliest tokens of a prediction, likeliest first; ties are ordered by id."""

    ids: Tensor
    """[..., k]"""
    logprob: Tensor
    """[..., k], in float32"""

    @classmethod
    def of(cls, logits: Tensor, k: int) -> "TopTokens":
        """Return the k likeliest tokens of logits [..., V]."""
        return cls.among(logits.float().log_softmax(-1), k)

    @classmethod
    def among(cls, logprob: Tensor, k: int) -> "TopTokens":
        """Return the k likeliest tokens of log-probabilities [..., V], in float32."""
        ids = logprob.topk(min(k, logprob.shape[-1])).indices.sort(-1).values  # any, of ties at the end
        ids = ids.gather(-1, logprob.gather(-1, ids).argsort(dim=-1, descending=True, stable=True))
        ids[..., :1] = logprob.argmax(-1, keepdim=True)  # the first of ties, also of those that topk left out
        return cls(ids=ids, logprob=logprob.gather(-1, ids))


@dataclass(slots=True)
class TokenThought:
    """What was thought before one generated token."""

    thought: bool
    """whether there was a thought"""
    reason: str
    """why there was, or was not"""
    tokens: list[int]
    """at most K token ids; empty without a thought, or where it ended at once"""
    mixing_weight: float
    """0 without a thought"""
    base: list[tuple[int, float]]
    """likeliest tokens without the thought and their log-probabilities"""
    thought_alone: list[tuple[int, float]]
    """by the thought alone; empty without one"""
    mixed: list[tuple[int, float]]
    """as predicted"""


@dataclass(slots=True)
class GeneratedThoughts:
    """What was thought before each generated token; zero where there was no thought."""

    thought: Tensor
    """[N, T] bool: whether there was a thought"""
    reason: list[list[str]]
    """N lists of T: why there was, or was not"""
    tokens: Tensor
    """[N, T, K]; -1 after the end of a thought"""
    mixing_weight: Tensor
    """[N, T]"""
    base: TopTokens
    """[N, T, k]: without the thought"""
    thought_alone: TopTokens
    """[N, T, k]: by the thought alone"""
    mixed: TopTokens
    """[N, T, k]: as predicted"""

    def __getitem__(self, place: tuple[int, int]) -> TokenThought:
        """Return what was thought before token t of row n."""
        n, t = place
        thought = bool(self.thought[n, t])

        def likeliest(top: TopTokens) -> list[tuple[int, float]]:
            return list(zip(top.ids[n, t].tolist(), top.logprob[n, t].tolist(), strict=True))

        return TokenThought(
            thought=thought,
            reason=self.reason[n][t],
            tokens=tokens_of(self.tokens[n, t : t + 1])[0] if thought else [],
            mixing_weight=float(self.mixing_weight[n, t]),
            base=likeliest(self.base),
            thought_alone=likeliest(self.thought_alone) if thought else [],
            mixed=likeliest(self.mixed),
        )

    def __iter__(self) -> Iterator[list[TokenThought]]:
        """Iterate over the rows, each a list of its tokens' thoughts."""
        N, T = self.thought.shape
        return ([self[n, t] for t in range(T)] for n in range(N))


@dataclass(slots=True)
class DecodingStep:
    """One step of decoding, of all rows."""

    thought: Tensor
    """[B] bool"""
    finished: Tensor
    """[B] bool"""
    measured: list[Tensor]
    """[B] for each rule of the policy"""
    tokens: Tensor
    """[B, K]"""
    mixing_weight: Tensor
    """[B]"""
    top: list[TopTokens]
    """[B, k] without the thought, by it alone, and mixed; k is 0 if they were not asked for"""

    def of(self, rows: Tensor) -> "DecodingStep":
        """Return the step of some rows."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return DecodingStep(
            **{name: value[rows] for name, value in values.items() if isinstance(value, Tensor)},
            measured=[values[rows] for values in self.measured],
            top=[TopTokens(top.ids[rows], top.logprob[rows]) for top in self.top],
        )


class Journal:
    """Follows the rows of one call of `generate`: how many thoughts each has had, which, and whether it has ended.

    Args:
        policy: says where to think, such as `ThinkPolicy.parse("always")`.
        keep: record what is thought.
        top_k: k; 0 records tokens and reasons, and skips the three predictions.
    """

    def __init__(self, policy: ThinkPolicy, *, keep: bool = False, top_k: int = 5) -> None:
        self.policy, self.keep, self.top_k = policy, keep, top_k
        self.begin(n_prompt=1)

    def begin(self, n_prompt: int) -> None:
        """Reset for another call, with prompts of n_prompt tokens; a prompt is read without thoughts up to its end."""
        self.n_prompt, self.within_prompt = n_prompt, False
        self.eos_ids: Tensor | None = None
        """[n]: tokens that end a sequence"""
        self.n_thoughts = torch.zeros(0, dtype=torch.long)
        """[B]: thoughts that each row has had"""
        self.finished = torch.zeros(0, dtype=torch.bool)
        """[B]: rows that have ended"""
        self.steps: list[DecodingStep] = []
        self.all_ids: Tensor | None = None
        """[B, S]: the tokens that the next step has read when it thinks; set by whoever calls the model"""
        self.cache: Cache | None = None

    def attach(self, cache: Cache) -> None:
        """Attach to a text's cache until `close`, so that beam search, which reorders the cache, reorders this too."""
        if self.cache is not cache:
            self.close()
            self.cache = cache
            cache.journal = self

    def close(self) -> None:
        """Detach from the cache."""
        if self.cache is not None:
            del self.cache.journal
        self.cache = None

    def begin_step(self, input_ids: Tensor, n_read: int) -> Tensor:
        """Return [B] bool, the rows that may think: none within a prompt that is read in chunks, and none that ended.

        Args:
            input_ids: [B, Q], what the step reads: the prompt, a part of it, or the last generated token.
            n_read: tokens of each row so far, with these.
        """
        self.within_prompt = n_read < self.n_prompt
        if n_read <= self.n_prompt or not len(self.finished):
            self.finished = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
            self.n_thoughts = torch.zeros_like(input_ids[:, 0])
        elif self.eos_ids is not None:
            self.finished = self.finished | torch.isin(input_ids[:, -1], self.eos_ids)
        return torch.zeros_like(self.finished) if self.within_prompt else ~self.finished

    def write(
        self,
        decision: Decision,
        rows: Tensor,
        tokens: Tensor,
        mixing_weight: Tensor,
        predictions: Callable[[], list[Tensor]],
    ) -> None:
        """Count the thoughts of a step, and record it if asked to; a step within the prompt has none.

        Args:
            decision: [B], of the policy.
            rows: [R]: rows that thought.
            tokens: [R, K]
            mixing_weight: [R]
            predictions: returns logits [B, V] without the thought, by it alone and mixed.
        """
        self.n_thoughts = self.n_thoughts.index_add(0, rows, torch.ones_like(rows))
        if not self.keep or self.within_prompt:
            return
        B = len(self.finished)
        thought = torch.zeros_like(self.finished)
        thought[rows] = True
        if self.top_k:
            top = [TopTokens.of(logits, self.top_k) for logits in predictions()]
        else:
            top = [TopTokens(ids=tokens.new_zeros(B, 0), logprob=mixing_weight.new_zeros(B, 0))] * 3
        self.steps.append(
            DecodingStep(
                thought=thought,
                finished=self.finished,
                measured=decision.measured,
                tokens=tokens.new_zeros(B, tokens.shape[1]).index_copy(0, rows, tokens),
                mixing_weight=mixing_weight.new_zeros(B).index_copy(0, rows, mixing_weight),
                top=top,
            )
        )

    def reorder(self, rows: Tensor) -> None:
        """Continue with these rows [B]: beams were reordered, or rows have ended."""
        if len(self.finished):
            self.finished, self.n_thoughts = self.finished[rows], self.n_thoughts[rows]

    def add(self, n: int) -> None:
        """Add n rows without a thought so far."""
        if len(self.finished):
            self.finished = torch.cat([self.finished, self.finished.new_zeros(n)])
            self.n_thoughts = torch.cat([self.n_thoughts, self.n_thoughts.new_zeros(n)])

    def reason(self, step: DecodingStep, row: int) -> str:
        """Return why a row thought in a step, or did not."""
        if bool(step.finished[row]):
            return FINISHED
        return self.policy.reason([float(values[row]) for values in step.measured])

    def read(self, n_tokens: int, beams: Tensor | None = None) -> GeneratedThoughts:
        """Return what was thought before the first n_tokens generated tokens.

        Args:
            n_tokens: T.
            beams: [N, T], the row that each token of a sequence came from; None without beams.
        """
        steps = self.steps[:n_tokens]  # other beams may have continued after the best one ended
        if beams is not None:
            steps = [step.of(beams[:, t].clamp(min=0)) for t, step in enumerate(steps)]
        N = len(steps[0].thought)

        def top(index: int) -> TopTokens:
            of = [step.top[index] for step in steps]
            return TopTokens(
                ids=torch.stack([each.ids for each in of], dim=1),
                logprob=torch.stack([each.logprob for each in of], dim=1),
            )

        return GeneratedThoughts(
            thought=torch.stack([step.thought for step in steps], dim=1),
            reason=[[self.reason(step, row) for step in steps] for row in range(N)],
            tokens=torch.stack([step.tokens for step in steps], dim=1),
            mixing_weight=torch.stack([step.mixing_weight for step in steps], dim=1),
            base=top(0),
            thought_alone=top(1),
            mixed=top(2),
        )
