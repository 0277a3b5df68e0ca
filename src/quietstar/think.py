"""Step 1, think: write a thought after each chosen position, all positions at once.

Legend: P thoughts of each position, C columns of all rows together, K sampled tokens of a thought, D hidden size.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers.cache_utils import Cache

from quietstar.attention import BranchCache
from quietstar.base.draws import Generators, RowGenerators, uniform
from quietstar.base.trunk import Text, Trunk
from quietstar.base.untrusted import is_number
from quietstar.base.vocabulary import sample
from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError, shown
from quietstar.grid import ThoughtGrid
from quietstar.heads import ThoughtEmbeddings
from quietstar.output import ENDED
from quietstar.thought_source import ThoughtSource

GRAPH_AT_MOST = 16
"""most sampled tokens of a thought whose graph is kept from step to step; see benchmarks/long_thoughts.py"""


@dataclass(frozen=True, slots=True)
class Thinker:
    """The parts of a model that think and talk, for one forward pass."""

    trunk: Trunk
    embeddings: ThoughtEmbeddings
    mixing_head: nn.Module
    """[..., D] without and with a thought -> mixing weights [..., 1]"""
    source: ThoughtSource
    end_head: nn.Module | None = None
    """[..., D] -> logit [...] of the end of a thought, in place of its next token; None if all have K tokens"""

    @classmethod
    def of(
        cls,
        trunk: Trunk,
        embeddings: ThoughtEmbeddings,
        mixing_head: nn.Module,
        config: QuietStarConfig,
        n_ahead: int,
        end_head: nn.Module | None = None,
    ) -> "Thinker":
        """Return the thinker of a model with that config, for thoughts of n_ahead tokens."""
        source = ThoughtSource(config.thought_source, n_ahead - 2, config.vocab_size, config.filler_token_id)
        return cls(trunk, embeddings, mixing_head, source, end_head)

    @property
    def n_thought_tokens(self) -> int:
        """K"""
        return self.source.n_tokens

    @property
    def n_ahead(self) -> int:
        """Tokens of a thought, start and end included."""
        return self.n_thought_tokens + 2


@dataclass(slots=True, kw_only=True)
class Sampling:
    """How thought tokens are sampled."""

    temperature: float
    """0 takes the likeliest token"""
    top_p: float = 1.0
    """tokens are sampled from the likeliest that together reach this probability"""
    suppressed: Tensor | None = None
    """[n]: ids that a thought may not contain"""
    generator: Generators = None
    """source of random numbers, on the model's device"""

    @property
    def is_by_row(self) -> bool:
        """Whether each row has a generator of its own."""
        return isinstance(self.generator, RowGenerators)

    def of(self, rows: Tensor) -> "Sampling":
        """Return the sampling of some rows [R] of a batch."""
        return replace(self, generator=self.generator.of(rows)) if isinstance(self.generator, RowGenerators) else self

    def sample(self, trunk: Trunk, states: Tensor, n_samples: int = 1) -> tuple[Tensor, Tensor]:
        """Return tokens and their log-probabilities, [n, n_samples] each, sampled at states [n, D]."""
        return sample(trunk.head, states, self.temperature, self.suppressed, self.generator, n_samples, self.top_p)

    def end(self, logit: Tensor, log_lasting: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decide whether thoughts end, by the logit [...] of that.

        At temperature 0 they have the median length: they end where the probability that they would have ended by now
        reaches a half.

        Args:
            logit: [...]
            log_lasting: [...] log-probability of not having ended before.

        Returns:
            The decisions, the log-probability of each (0 at temperature 0), and that of not having ended by now.
        """
        temperature = self.temperature or 1.0
        log_lasting = log_lasting + logsigmoid(-logit / temperature)
        if self.temperature == 0:
            return log_lasting <= -math.log(2), torch.zeros_like(logit), log_lasting
        logit = logit / temperature
        ends = uniform(tuple(logit.shape), self.generator, logit.device) < logit.sigmoid()
        return ends, logsigmoid(torch.where(ends, logit, -logit)), log_lasting


def check_sampling(thought_temperature: float | None, thought_top_p: float | None) -> None:
    """Raise SettingsError for an invalid temperature or top-p of thoughts."""
    if thought_temperature is not None and not (is_number(thought_temperature) and thought_temperature >= 0):
        raise SettingsError(f"thought_temperature is {shown(thought_temperature)}; give a number of at least 0")
    if thought_top_p is None or not (is_number(thought_top_p) and 0 < thought_top_p <= 1):
        raise SettingsError(f"thought_top_p is {shown(thought_top_p)}; give a number above 0, at most 1")


@dataclass
class Thoughts:
    """Thoughts, and the states and cache from which `talk` continues."""

    tokens: Tensor
    """[P, C, K]; -1 after the end of a thought"""
    logprob: Tensor | None = None
    """[P, C, K]: log-probabilities under the distribution that the tokens were sampled from; None if greedy"""
    hidden: Tensor | None = None
    """[K, P, C, D]: the state that each token was sampled from"""
    cache: BranchCache | None = None
    """keys and values of the base pass and of the steps in `hidden`"""
    may_end: bool = True
    """whether some may have ended early"""

    @cached_property
    def have_ended(self) -> bool:
        """Whether some have ended early, so that branches differ in length."""
        return self.may_end and bool((self.tokens == ENDED).any())

    @property
    def lengths(self) -> Tensor:
        """[P, C]: sampled tokens of each thought."""
        return (self.tokens != ENDED).sum(-1)


def think(thinker: Thinker, grid: ThoughtGrid, text: Text, sampling: Sampling) -> Thoughts:
    """Write a thought of K tokens at every column, one token of all columns at a time.

    The base pass has read the text into its cache. The graph of short thoughts is kept, for `talk` to continue; each
    of their steps has a graph of its own over all keys before it. Long ones, those that may end early, and those under
    gradient checkpointing are sampled without gradient and keep no states: `talk` grows the branches in one pass.
    """
    if not thinker.source.is_sampled:
        where = (grid.rows, grid.columns, grid.n_passes)
        return Thoughts(thinker.source.write(text, *where, sampling.suppressed, sampling.generator), may_end=False)
    is_long = torch.is_grad_enabled() and thinker.n_thought_tokens > GRAPH_AT_MOST
    if not (is_long or thinker.trunk.grows_in_parts or thinker.end_head is not None):
        return _write(thinker, grid, text.cache, sampling, keeps_states=True)
    with torch.no_grad():
        return _write(thinker, grid, text.cache, sampling, keeps_states=False)


def _write(
    thinker: Thinker, grid: ThoughtGrid, base_cache: Cache, sampling: Sampling, *, keeps_states: bool
) -> Thoughts:
    trunk, P, C, K = thinker.trunk, grid.n_passes, grid.n_columns, thinker.n_thought_tokens
    room = 0 if torch.is_grad_enabled() else grid.branch_length
    cache = trunk.branch_cache(base_cache, replace(grid, n_passes=1) if K else grid, room=room)
    embeds = thinker.embeddings.start.to(trunk.dtype).expand(1, 1, C, -1)
    tokens, logprob, hidden = [], [], [embeds.new_zeros(0, P, C, embeds.shape[-1])]
    has_ended, log_lasting = (torch.zeros(P, C, dtype=kind, device=embeds.device) for kind in (torch.bool, torch.float))
    for step in range(K):
        is_start = step == 0  # the same token in every pass: it goes through the trunk once
        one_or_all = replace(grid, n_passes=1) if is_start else grid
        states = trunk.branch_pass(one_or_all, range(step, step + 1), embeds, cache)
        sampled = sampling.sample(trunk, states.flatten(0, -2), n_samples=P if is_start else 1)
        if is_start:
            cache.repeat(P)
            states, sampled = states.expand(-1, P, -1, -1), (sampled[0].T, sampled[1].T)
        if keeps_states:
            hidden.append(states)
        token, of_token = (each.reshape(P, C) for each in sampled)
        if thinker.end_head is not None:
            ends, of_end, log_lasting = sampling.end(thinker.end_head(states[0]), log_lasting)
            of_token = torch.where(ends, of_end, of_token + of_end).masked_fill(has_ended, 0.0)
            has_ended = has_ended | ends
            token = token.masked_fill(has_ended, ENDED)
        tokens.append(token)
        logprob.append(of_token)
        embeds = trunk.embed(token.clamp(min=0))[None]
        if thinker.end_head is not None and step + 1 < K and has_ended.all() and not trunk.is_sharded:
            tokens += [torch.full_like(token, ENDED)] * (K - step - 1)
            logprob += [torch.zeros_like(of_token)] * (K - step - 1)
            break
    if K == 0:
        all_tokens, all_logprob = grid.columns.new_zeros(P, C, 0), embeds.new_zeros(P, C, 0)
    else:
        all_tokens, all_logprob = torch.stack(tokens, dim=-1), torch.stack(logprob, dim=-1)
    thoughts = Thoughts(all_tokens, all_logprob if sampling.temperature else None)
    thoughts.may_end = thinker.end_head is not None
    if keeps_states:
        thoughts.hidden, thoughts.cache = torch.cat(hidden), cache
    return thoughts
