"""Think and talk over a text: the base pass, where to think, the thoughts, and predictions with them mixed in.

Two ways lead there. Over a grid branches grow at any positions, with gradient or without; at the end of a text, as in
decoding, a branch is the text going on (`quietstar.decode`).

Legend: B examples, S tokens in a row, Q of them new ones, P passes, C columns of all rows together, M true tokens after
each thought, K sampled tokens of a thought, D hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from quietstar.base.trunk import Trunk
from quietstar.base.vocabulary import draw
from quietstar.decode import decode
from quietstar.grid import ThoughtGrid
from quietstar.journal import Journal
from quietstar.policy import Decision, Moment, ThinkPolicy
from quietstar.talk import (
    Branches,
    Talk,
    branch_embeds,
    branches_in_parts,
    finish_branches,
    mixed_states,
    split_branches,
    talk,
)
from quietstar.think import think

if TYPE_CHECKING:
    from quietstar.model import QuietStarForCausalLM


@dataclass(slots=True, kw_only=True)
class Sampling:
    """How thoughts are drawn."""

    temperature: float
    """0 takes the likeliest token"""
    top_p: float = 1.0
    """draw among the likeliest tokens that together reach this probability"""
    suppressed: Tensor | None = None
    """ids that a thought may not contain"""
    generator: torch.Generator | None = None
    """source of random numbers, on the model's device"""


@dataclass(slots=True, kw_only=True)
class Text:
    """Tokens that are read, and what was read before them."""

    input_ids: Tensor
    """[B, Q]"""
    attention_mask: Tensor
    """[B, S], 0 at padding"""
    position_ids: Tensor
    """[B, S]"""
    cache: Cache
    """keys and values of the S - Q tokens before"""

    @property
    def n_new(self) -> int:
        """Q"""
        return self.input_ids.shape[1]


@dataclass(slots=True, kw_only=True)
class Predictions:
    """States that the LM head turns into predictions, without thoughts and with them."""

    trunk: Trunk
    grid: ThoughtGrid
    """where thoughts were written, among all S tokens"""
    h_base: Tensor
    """[B, Q, D]: states of the new tokens without thoughts"""
    thoughts: Tensor
    """[P, C, K]"""
    branches: Branches
    """states along the branches"""
    said: Talk
    """[P, C, M]: mixing weights, mixed states"""
    drawn_logprob: Tensor | None = None
    """[P, C, K]: log-probability of each token in what it was drawn from; None where none was drawn"""
    base_logits: Tensor | None = None
    """[B, V] after the last token, where a policy has looked at them"""

    @property
    def mixed(self) -> Tensor:
        """[B, Q, D]: mixed where a thought was written (the first pass), h_base elsewhere."""
        return mixed_states(self.grid, self.h_base, self.said)

    def logits(self, kept: slice | Tensor) -> Tensor:
        """[B, kept, V]: mixed where a thought was written, the base model's own elsewhere."""
        if self.base_logits is None:
            return self.trunk.logits(self.mixed[:, kept])
        mixed = self.trunk.logits(self.said.mixed[0, :, 0])
        return self.base_logits.to(mixed.dtype).index_put((self.grid.rows,), mixed)[:, None]

    def last_three(self) -> list[Tensor]:
        """[B, V] each, after the last token: logits without the thought, by the thought alone, and mixed."""
        without = self.h_base[:, -1]
        alone = without.index_put((self.grid.rows,), self.branches.h_thought[0, :, 0])
        return [self.trunk.logits(states) for states in (without, alone, self.mixed[:, -1])]


def predict_at_the_end(
    model: "QuietStarForCausalLM",
    trunk: Trunk,
    text: Text,
    may_think: Tensor,
    policy: ThinkPolicy,
    sampling: Sampling,
    journal: Journal | None,
) -> Predictions:
    """Think after the last token of each row, where `may_think` [B] and the policy agree; no gradient."""
    Q, S, device = text.n_new, text.attention_mask.shape[1], may_think.device
    if journal is not None and journal.n_prompt > S:  # a prompt that is read in chunks
        journal, may_think = None, torch.zeros_like(may_think)
    if journal is not None:
        journal.begin_step(text.input_ids)
        may_think = may_think & ~journal.finished
    moment = Moment(
        rows=torch.arange(len(may_think), device=device),
        position_ids=text.position_ids[:, -1],
        n_thoughts=torch.zeros_like(text.input_ids[:, 0]) if journal is None else journal.n_thoughts,
        h_base=torch.zeros(0, model.config.hidden_size, device=device),
        to_logits=trunk.logits,
        to_weight=model.mixing_head,
        generator=sampling.generator,
    )
    decision: Decision | None = None if policy.needs_base else policy.decide(moment)
    rides = decision is not None and bool((decision.think | ~may_think).all()) and bool(may_think.any())

    def who_thinks(h_base: Tensor) -> Tensor:
        nonlocal decision
        if decision is None:
            moment.h_base = h_base[:, -1]
            decision = policy.decide(moment)
        return decision.think & may_think

    decoded = decode(
        trunk,
        trunk.embed(text.input_ids),
        text.attention_mask,
        text.position_ids[:, -Q:],
        text.cache,
        model.thought_embeddings,
        n_tokens=model.config.n_thought_tokens,
        draw=lambda states: _draw(trunk, states, sampling),
        who_thinks=who_thinks,
        rides=rides,
    )
    grid = ThoughtGrid(
        rows=decoded.rows,  # type: ignore[arg-type]
        columns=torch.full_like(decoded.rows, S - 1),  # type: ignore[arg-type]
        base_mask=text.attention_mask.bool(),  # type: ignore[arg-type]
        base_position_ids=text.position_ids,  # type: ignore[arg-type]
        n_passes=1,
        branch_length=model.config.n_ahead,
    )
    h_thought = decoded.h_thought[None, :, None]
    predictions = Predictions(
        trunk=trunk,
        grid=grid,
        h_base=decoded.h_base,
        thoughts=decoded.thoughts[None],
        branches=Branches(h_sampled=h_thought[:, :, :0], h_thought=h_thought),
        said=talk(grid, model.mixing_head, decoded.h_base, h_thought),
        base_logits=moment.base_logits,
    )
    if journal is not None and decision is not None:
        weight = predictions.said.weight[0, :, 0]
        journal.write(decision, decoded.rows, decoded.thoughts, weight, predictions.last_three)
    return predictions


def _draw(trunk: Trunk, states: Tensor, sampling: Sampling) -> Tensor:
    """[n, D] -> [n] tokens."""
    return draw(
        trunk.head, states, sampling.temperature, sampling.suppressed, sampling.generator, top_p=sampling.top_p
    )[0].squeeze(1)


def predict_over_grid(
    model: "QuietStarForCausalLM",
    trunk: Trunk,
    text: Text,
    may_think: Tensor,
    policy: ThinkPolicy,
    sampling: Sampling,
    *,
    thoughts: Tensor | None,
    n_passes: int,
    n_ahead_talk: int,
) -> Predictions:
    """Think after tokens anywhere, where `may_think` [B, Q] and the policy agree.

    The branches run over the base pass's keys and values, through which gradients flow back into the text. They go on
    from where the sampling left them; under gradient checkpointing thoughts are sampled without gradient, and whole
    branches then made some columns at a time. `thoughts` [B, P, Q, K] are thought in place of sampled ones.
    """
    K, Q = model.config.n_thought_tokens, text.n_new
    in_parts = torch.is_grad_enabled() and trunk.recomputes
    embeds = trunk.embed(text.input_ids)
    trunk.frequencies.choose(text.position_ids[:, -Q:])
    h_base = trunk.base_pass(embeds, text.attention_mask, text.position_ids[:, -Q:], text.cache)
    if not policy.is_always:
        decided = decide_over(model, trunk, text, may_think, policy, h_base, sampling.generator).think
        may_think = may_think.index_put(may_think.nonzero(as_tuple=True), decided)
    grid = ThoughtGrid.grow(
        pad(may_think, (text.attention_mask.shape[1] - Q, 0)),
        text.attention_mask,
        text.position_ids,
        n_passes=n_passes,
        branch_length=model.config.n_ahead + n_ahead_talk - 1,
    )
    over_text = (trunk, grid, model.thought_embeddings)

    with trunk.keeping_caches():
        branch_cache, grown, drawn_logprob = trunk.branch_cache(text.cache, grid), None, None
        if thoughts is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not in_parts):
                sampled = think(
                    trunk,
                    grid,
                    branch_cache,
                    model.thought_embeddings,
                    n_tokens=K,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    suppressed=sampling.suppressed,
                    generator=sampling.generator,
                )
            words, grown = sampled.tokens, sampled.hidden
            drawn_logprob = sampled.logprob if sampling.temperature else None
        else:
            words = grid.gather_columns(thoughts.transpose(1, 2)).transpose(0, 1)
        if in_parts:
            del branch_cache, grown
            hidden = branches_in_parts(*over_text, words, embeds, n_ahead_talk, text.cache)
        else:
            n_grown = 0 if grown is None else len(grown)
            branches = branch_embeds(*over_text, words, embeds, n_ahead_talk, n_grown)
            hidden = finish_branches(trunk, grid, branches, branch_cache, grown)
    states = split_branches(hidden, K)
    said = talk(grid, model.mixing_head, h_base, states.h_thought)
    return Predictions(
        trunk=trunk,
        grid=grid,
        h_base=h_base,
        thoughts=words,
        branches=states,
        said=said,
        drawn_logprob=drawn_logprob,
    )


@torch.no_grad()
def decide_over(
    model: "QuietStarForCausalLM",
    trunk: Trunk,
    text: Text,
    may_think: Tensor,
    policy: ThinkPolicy,
    h_base: Tensor,
    generator: torch.Generator | None,
) -> Decision:
    """What the policy says of the new tokens where `may_think` [B, Q]: of these N, row by row."""
    rows, columns = may_think.nonzero(as_tuple=True)
    moment = Moment(
        rows=rows,
        position_ids=text.position_ids[:, -text.n_new :][rows, columns],
        n_thoughts=torch.zeros_like(text.input_ids[:, 0]),
        h_base=h_base.detach()[rows, columns],
        to_logits=trunk.logits,
        to_weight=model.mixing_head,
        generator=generator,
    )
    return policy.decide(moment)


def where_thoughts_count(
    attention_mask: Tensor, kept: slice | Tensor, think_at: Tensor | None, labelled: Tensor | None, loss_only: bool
) -> Tensor:
    """[B, Q] bool: where a logit or a loss needs a thought, and think_at allows one.

    Where there are labels but none to predict, one thought is written that counts nowhere: processes that share a
    model all make the same passes, whatever their rows look like.

    Args:
        attention_mask: [B, Q], of the new tokens.
        kept: positions whose logits are returned.
        think_at: [B, Q]; None allows all.
        labelled: [B, Q] where there is a label to predict; None where there are no labels.
        loss_only: nobody asks for logits.
    """
    visible = attention_mask.bool()
    if labelled is None:
        is_kept = torch.zeros_like(visible)
        is_kept[:, kept] = True
        wanted = visible & is_kept
    else:
        wanted = labelled if loss_only else visible | labelled
    if think_at is not None:
        wanted = wanted & think_at.bool()
    if labelled is not None and not wanted.any() and (think_at is None or think_at.any()):
        wanted = torch.zeros_like(wanted)
        wanted.view(-1)[visible.flatten().int().argmax()] = True
    return wanted
