"""A text that is read once, and thought about as often as needed: any thoughts, of any length, at any position.

Legend: S tokens of the text, C columns, K tokens that the model thinks, k of a thought that is given, M true tokens
after it, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import DynamicCache

from quietstar.base.logprob import token_logprob
from quietstar.base.trunk import BasePass, Text, check_reach
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid, default_position_ids
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.predict import decide_over
from quietstar.talk import talk
from quietstar.think import Sampling, Thoughts, think

BRANCH_TOKENS = 4096
"""tokens of branches in one pass"""


@dataclass(slots=True)
class Said:
    """Predictions after thoughts."""

    weight: Tensor
    """[C, M]: mixing weights, in float32"""
    alone: Tensor
    """[C, M, D]: states that predict by the thought alone"""
    mixed: Tensor
    """[C, M, D]: mixed states"""
    thought_logprob: Tensor
    """[C, k]: log-probability of each thought token at temperature 1, in nats"""


class Reading:
    """The base pass over a text [S], kept with its keys and values. No gradient; the model does not change.

    The model is in evaluation mode; its own thoughts have n_ahead tokens (None: as many as its config says). With
    `at_once`, only that many tokens are read now, and the others by `read_on`.

    Raises:
        SettingsError: the text is empty, or too long for the model's learned positions.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: QuietStarForCausalLM,
        input_ids: Tensor,
        at_once: int | None = None,
        *,
        n_ahead: int | None = None,
    ) -> None:
        if input_ids.dim() != 1 or not len(input_ids):
            raise SettingsError(f"the text is {list(input_ids.shape)} tokens; give [S] with at least one")
        self.model, self.thinker = model, model.thinker(n_ahead)
        self.trunk = self.thinker.trunk
        ids = input_ids[None].to(model.device)
        check_reach(self.trunk.base_lm, len(input_ids), self.thinker.n_ahead)
        mask = torch.ones_like(ids)
        self.text = Text(
            input_ids=ids,
            attention_mask=mask,
            position_ids=default_position_ids(mask.bool()),
            cache=DynamicCache(),
        )
        self.trunk.frequencies.choose(self.text.position_ids)
        self.embeds = self.trunk.embed(ids)
        self.h_base = self._read(slice(0, at_once))
        """[S, D]: states without thoughts"""

    def __len__(self) -> int:
        return self.h_base.shape[0]

    @property
    def is_read(self) -> bool:
        """Whether the whole text has been read, as every method but `read_on` requires."""
        return len(self) == len(self.input_ids)

    @torch.no_grad()
    def read_on(self, n_tokens: int) -> None:
        """Read n_tokens more."""
        self.h_base = torch.cat([self.h_base, self._read(slice(len(self), len(self) + n_tokens))])

    def _read(self, part: slice) -> Tensor:
        text = self.text
        return self.trunk.base_pass(
            self.embeds[:, part], text.attention_mask[:, : part.stop], text.position_ids[:, part], text.cache
        )[0]

    @property
    def input_ids(self) -> Tensor:
        """[S]"""
        return self.text.input_ids[0]

    @torch.no_grad()
    def decide(
        self, policy: ThinkPolicy, may_think: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[str]]:
        """Return the columns [C] where a policy thinks, among `may_think` [S], and its reason at each position [S].

        The reason is empty where may_think is false.
        """
        decision = decide_over(self.thinker, self.text, may_think[None], policy, self.h_base[None], generator)
        asked = may_think.nonzero().squeeze(1)
        reasons = [""] * len(self)
        measured = [values.tolist() for values in decision.measured]
        for n, position in enumerate(asked.tolist()):
            reasons[position] = policy.reason([values[n] for values in measured])
        return asked[decision.think], reasons

    @torch.no_grad()
    def think(self, columns: Tensor, sampling: Sampling | None = None) -> Tensor:
        """Return the thoughts [C, K] of the model at columns [C], rising; greedy by default."""
        sampling = sampling or Sampling(temperature=0.0, suppressed=self.model.suppressed)
        thoughts = [columns.new_zeros(0, self.thinker.n_thought_tokens)]
        for _, grid in self._grids(columns, self.thinker.n_ahead):
            tokens = think(self.thinker, grid, self.text, sampling).tokens
            thoughts.append(tokens[0].to(columns.device))
        return torch.cat(thoughts)

    @torch.no_grad()
    def after(self, columns: Tensor, thoughts: Tensor, n_ahead_talk: int = 1) -> Said:
        """Return what is said after thoughts [C, k] at columns [C], rising, and n_ahead_talk - 1 true tokens more."""
        k, M, D = thoughts.shape[1], n_ahead_talk, self.h_base.shape[1]
        check_reach(self.trunk.base_lm, len(self), k + 1 + M)
        base = BasePass(embeds=self.embeds, h_base=self.h_base[None], cache=self.text.cache)
        device, no_states = self.h_base.device, self.h_base.new_zeros(0, M, D)
        parts = [Said(torch.zeros(0, M, device=device), no_states, no_states, torch.zeros(0, k, device=device))]
        for some, grid in self._grids(columns, k + 1 + M):
            tokens = thoughts[some].to(device)[None]
            said = talk(self.thinker, grid, base, Thoughts(tokens))
            sampled = said.branches.h_sampled[0].flatten(0, 1)
            some_tokens = tokens.flatten().clamp(min=0)
            logprob = token_logprob(self.trunk.head, sampled, some_tokens, suppressed=self.model.suppressed)
            parts.append(
                Said(
                    weight=said.weight[0].float(),
                    alone=said.branches.h_thought[0],
                    mixed=said.mixed[0],
                    thought_logprob=logprob.view(tokens.shape[1:]),
                )
            )
        return Said(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Said)))

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """Return logits [..., V] in float32 of states [..., D]."""
        return self.trunk.logits(states).float()

    def _grids(self, columns: Tensor, branch_length: int) -> Iterator[tuple[slice, ThoughtGrid]]:
        """Yield branches at some of the columns at a time."""
        size = max(1, BRANCH_TOKENS // branch_length)
        for first in range(0, len(columns), size):
            some = slice(first, min(first + size, len(columns)))
            think_at = torch.zeros_like(self.text.input_ids)
            think_at[0, columns[some]] = 1
            mask, position_ids = self.text.attention_mask, self.text.position_ids
            yield some, ThoughtGrid.grow(think_at, mask, position_ids, n_passes=1, branch_length=branch_length)
