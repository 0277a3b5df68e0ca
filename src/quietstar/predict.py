"""From a text that is read to predictions with thoughts mixed in: where to think, and what follows.

Thoughts grow in one of two ways: over a grid at any positions, with gradient or without; or at the end of a text, as in
decoding, where a branch is the text continued (`quietstar.decode`).

Legend: B examples, S tokens in a row, Q of them new ones, P thoughts of each position, C columns of all rows together,
M true tokens after each thought, K sampled tokens of a thought, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from quietstar.base.draws import Generators
from quietstar.base.trunk import BasePass, Text, Trunk
from quietstar.decode import Decoded, decode
from quietstar.grid import ThoughtGrid
from quietstar.output import CACHE, QuietStarOutput
from quietstar.policy import Decision, Moment, ThinkPolicy
from quietstar.request import Request
from quietstar.talk import Branches, Talk, mix_branches, mixed_states
from quietstar.think import Thinker, Thoughts


@dataclass(slots=True, kw_only=True)
class Predictions:
    """States that the LM head turns into predictions, without thoughts and with them."""

    trunk: Trunk
    grid: ThoughtGrid
    """where thoughts were written, among all S tokens"""
    h_base: Tensor
    """[B, Q, D]: states of the new tokens without thoughts"""
    thoughts: Thoughts
    said: Talk
    """mixing weights [P, C, M], mixed states [P, C, M, D]"""
    base_logits: Tensor | None = None
    """[B, V] after the last token, if a policy has looked at them; `logits` then has that position only"""

    @property
    def mixed(self) -> Tensor:
        """[B, Q, D]: mixed where a thought was written (the first pass), h_base elsewhere."""
        return mixed_states(self.grid, self.h_base, self.said)

    def logits(self, kept: slice | Tensor) -> Tensor:
        """Return [B, kept, V]: mixed where a thought was written, the base model's own elsewhere."""
        if self.base_logits is None:
            return self.trunk.logits(self.mixed[:, kept])
        mixed = self.trunk.logits(self.said.mixed[0, :, 0])
        return self.base_logits.to(mixed.dtype).index_put((self.grid.rows,), mixed)[:, None][:, kept]

    def three_predictions(self) -> list[Tensor]:
        """Return logits [B, V] after the last token: without the thought, by the thought alone, and mixed."""
        without = self.h_base[:, -1]
        alone = without.index_put((self.grid.rows,), self.said.branches.h_thought[0, :, 0])
        return [self.trunk.logits(states) for states in (without, alone, self.mixed[:, -1])]

    def output(self, request: Request) -> QuietStarOutput:
        """Return what a forward pass returns without labels."""
        Q, given = request.text.n_new, request.thoughts
        output = QuietStarOutput(
            mixing_weight=self.grid.scatter_columns(self.said.weight, Q),
            think_at=self.grid.is_column[:, -Q:],
            thoughts=self.grid.scatter_columns(self.thoughts.tokens, Q) if given is None else given,
            **{CACHE: request.text.cache if request.use_cache else None},  # type: ignore[arg-type]
        )
        if self.trunk.hidden_states:
            output.hidden_states = tuple(states[:, :Q] for states in self.trunk.hidden_states)
        if not request.loss_only:
            output.logits = self.logits(request.kept)
        return output


@torch.no_grad()
def decide_over(
    thinker: Thinker,
    text: Text,
    may_think: Tensor,
    policy: ThinkPolicy,
    h_base: Tensor,
    generator: Generators,
) -> Decision:
    """Return what the policy decides about the N new tokens at which `may_think` [B, Q], row by row."""
    rows, columns = may_think.nonzero(as_tuple=True)
    moment = Moment(
        rows=rows,
        position_ids=text.new_positions[rows, columns],
        n_thoughts=torch.zeros_like(text.input_ids[:, 0]),
        h_base=h_base.detach()[rows, columns],
        to_logits=thinker.trunk.logits,
        to_weight=thinker.mixing_head,
        generator=generator,
    )
    return policy.decide(moment)


def where_to_think(thinker: Thinker, request: Request, base: BasePass) -> ThoughtGrid:
    """Return the branches of a request: where a thought counts and the policy agrees."""
    text, policy, allowed = request.text, request.policy, request.may_think()
    if not policy.is_always:
        decision = decide_over(thinker, text, allowed, policy, base.h_base, request.sampling.generator)
        allowed = allowed.index_put(allowed.nonzero(as_tuple=True), decision.think)
    return ThoughtGrid.grow(
        pad(allowed, (text.attention_mask.shape[1] - text.n_new, 0)),
        text.attention_mask,
        text.position_ids,
        n_passes=request.n_passes,
        branch_length=request.branch_length,
    )


def predict_next(thinker: Thinker, request: Request) -> Predictions:
    """Return predictions after the last token of each row, thinking where a thought counts and the policy agrees.

    No gradient. The base pass, thinking and talking are interleaved here to save passes; see `quietstar.decode`.
    """
    text, policy, journal, may_think = request.text, request.policy, request.journal, request.may_think()[:, -1]
    B, S = text.attention_mask.shape
    n_thoughts = torch.zeros_like(text.input_ids[:, 0])
    if journal is not None:
        journal.attach(text.cache)
        may_think = may_think & journal.begin_step(text.input_ids, S)
        n_thoughts = journal.n_thoughts

    def decide(h_base: Tensor) -> Decision:
        moment = Moment(
            rows=torch.arange(B, device=may_think.device),
            position_ids=text.position_ids[:, -1],
            n_thoughts=n_thoughts,
            h_base=h_base,
            to_logits=thinker.trunk.logits,
            to_weight=thinker.mixing_head,
            generator=request.sampling.generator,
        )
        return policy.decide(moment)

    # a policy that needs no base state decides before the first pass, which can then include start
    early = None if policy.needs_base else decide(torch.zeros(0, request.config.hidden_size, device=may_think.device))
    all_think = early is not None and bool(may_think.any() and (early.think | ~may_think).all())
    decoded = decode(
        thinker,
        text,
        request.sampling,
        may_think=may_think,
        decide=decide if early is None else lambda _: early,
        start_in_first_pass=all_think,
    )
    predictions = _at_the_end(thinker, request, decoded)
    if journal is not None:
        weight = predictions.said.weight[0, :, 0]
        journal.write(decoded.decision, decoded.rows, decoded.thoughts, weight, predictions.three_predictions)
    return predictions


def _at_the_end(thinker: Thinker, request: Request, decoded: Decoded) -> Predictions:
    """Return predictions after the last token of each row, mixed where it has a thought."""
    text = request.text
    grid = ThoughtGrid(
        rows=decoded.rows,  # type: ignore[arg-type]
        columns=torch.full_like(decoded.rows, text.attention_mask.shape[1] - 1),  # type: ignore[arg-type]
        base_mask=text.attention_mask.bool(),  # type: ignore[arg-type]
        base_position_ids=text.position_ids,  # type: ignore[arg-type]
        n_passes=1,
        branch_length=request.branch_length,
    )
    h_thought = decoded.h_thought[None, :, None]
    branches = Branches(h_sampled=h_thought[:, :, :0], h_thought=h_thought)
    return Predictions(
        trunk=thinker.trunk,
        grid=grid,
        h_base=decoded.h_base,
        thoughts=Thoughts(decoded.thoughts[None]),
        said=mix_branches(grid, thinker.mixing_head, decoded.h_base, branches),
        base_logits=decoded.decision.base_logits,
    )
