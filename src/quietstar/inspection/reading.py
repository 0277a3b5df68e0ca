"""A text read once, on which thoughts are grown as often as one likes: any thoughts, of any length, anywhere.

Legend: S tokens of the text, C columns, K tokens that the model thinks, k of a thought that is given, M true tokens
after it, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from quietstar.base.logprob import token_logprob
from quietstar.base.trunk import check_reach
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid, default_position_ids
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.predict import Sampling, Text, decide_over
from quietstar.talk import branch_embeds, finish_branches, split_branches, talk
from quietstar.think import think

BRANCH_TOKENS = 4096
"""tokens of branches that go through the model at once"""


@dataclass(slots=True)
class Said:
    """What follows thoughts."""

    weight: Tensor
    """[C, M]: mixing weights, in float32"""
    alone: Tensor
    """[C, M, D]: states that predict by the thought alone"""
    mixed: Tensor
    """[C, M, D]: mixed states"""
    thought_logprob: Tensor
    """[C, k]: log-probability of each thought token at temperature 1, in nats"""


class Reading:
    """The base pass over a text, kept with its keys and values. No gradient; the model is left as it is.

    Args:
        model: in evaluation mode.
        input_ids: [S], at least one.
        at_once: tokens that are read now, the others by `read_on`; None reads all.

    Raises:
        SettingsError: the text is empty, or too long for the model's learned positions.
    """

    @torch.no_grad()
    def __init__(self, model: QuietStarForCausalLM, input_ids: Tensor, at_once: int | None = None) -> None:
        if input_ids.dim() != 1 or not len(input_ids):
            raise SettingsError(f"the text is {list(input_ids.shape)} tokens; give [S] with at least one")
        self.model, self.trunk = model, model.trunk
        ids = input_ids[None].to(model.device)
        check_reach(self.trunk.base_lm, len(input_ids), model.config.n_ahead)
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
        """Whether the whole text has been read, as all but `read_on` ask for."""
        return len(self) == len(self.input_ids)

    @torch.no_grad()
    def read_on(self, n_tokens: int) -> None:
        """Read so many tokens more."""
        self.h_base = torch.cat([self.h_base, self._read(slice(len(self), len(self) + n_tokens))])

    def _read(self, some: slice) -> Tensor:
        text = self.text
        return self.trunk.base_pass(
            self.embeds[:, some], text.attention_mask[:, : some.stop], text.position_ids[:, some], text.cache
        )[0]

    @property
    def input_ids(self) -> Tensor:
        """[S]"""
        return self.text.input_ids[0]

    @torch.no_grad()
    def decide(
        self, policy: ThinkPolicy, may_think: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[str]]:
        """Columns [C] where a policy thinks, among `may_think` [S] bool, and its reason at each position [S].

        The reason is empty where it may not think.
        """
        decision = decide_over(self.model, self.trunk, self.text, may_think[None], policy, self.h_base[None], generator)
        asked = may_think.nonzero().squeeze(1)
        reasons = [""] * len(self)
        measured = [of.tolist() for of in decision.measured]
        for n, position in enumerate(asked.tolist()):
            reasons[position] = policy.reason([of[n] for of in measured])
        return asked[decision.think], reasons

    @torch.no_grad()
    def think(self, columns: Tensor, sampling: Sampling | None = None) -> Tensor:
        """[C, K]: what the model thinks at columns [C], rising; greedily unless told otherwise."""
        K = self.model.config.n_thought_tokens
        sampling = sampling or Sampling(temperature=0.0, suppressed=self.model.suppressed)
        found = [columns.new_zeros(0, K)]
        for _, grid in self._grids(columns, K + 2):
            cache = self.trunk.branch_cache(self.text.cache, grid)
            thoughts = think(
                self.trunk,
                grid,
                cache,
                self.model.thought_embeddings,
                n_tokens=K,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                suppressed=sampling.suppressed,
                generator=sampling.generator,
            )
            found.append(thoughts.tokens[0].to(columns.device))
        return torch.cat(found)

    @torch.no_grad()
    def after(self, columns: Tensor, thoughts: Tensor, n_ahead_talk: int = 1) -> Said:
        """What is said after thoughts [C, k] at columns [C], rising, and after n_ahead_talk - 1 true tokens more."""
        k, M, D = thoughts.shape[1], n_ahead_talk, self.h_base.shape[1]
        check_reach(self.trunk.base_lm, len(self), k + 1 + M)
        embeddings = self.model.thought_embeddings
        weights, alone, mixed = [], [self.h_base.new_zeros(0, M, D)], [self.h_base.new_zeros(0, M, D)]
        weights.append(torch.zeros(0, M, device=self.h_base.device))
        logprob = [torch.zeros(0, k, device=self.h_base.device)]
        for some, grid in self._grids(columns, k + 1 + M):
            words = thoughts[some].to(self.h_base.device)[None]
            embeds = branch_embeds(self.trunk, grid, embeddings, words, self.embeds, M)
            hidden = finish_branches(self.trunk, grid, embeds, self.trunk.branch_cache(self.text.cache, grid))
            states = split_branches(hidden, k)
            said = talk(grid, self.model.mixing_head, self.h_base[None], states.h_thought)
            weights.append(said.weight[0].float())
            alone.append(states.h_thought[0])
            mixed.append(said.mixed[0])
            sampled = states.h_sampled[0].flatten(0, 1)
            of_words = token_logprob(self.trunk.head, sampled, words.flatten(), suppressed=self.model.suppressed)
            logprob.append(of_words.view(words.shape[1:]))
        return Said(
            weight=torch.cat(weights),
            alone=torch.cat(alone),
            mixed=torch.cat(mixed),
            thought_logprob=torch.cat(logprob),
        )

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., V] in float32."""
        return self.trunk.logits(states).float()

    def _grids(self, columns: Tensor, branch_length: int) -> Iterator[tuple[slice, ThoughtGrid]]:
        """Branches at some of the columns at a time."""
        size = max(1, BRANCH_TOKENS // branch_length)
        for first in range(0, len(columns), size):
            some = slice(first, min(first + size, len(columns)))
            think_at = torch.zeros_like(self.text.input_ids)
            think_at[0, columns[some]] = 1
            yield (
                some,
                ThoughtGrid.grow(
                    think_at,
                    self.text.attention_mask,
                    self.text.position_ids,
                    n_passes=1,
                    branch_length=branch_length,
                ),
            )
