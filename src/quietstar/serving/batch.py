"""Texts that a thinking model goes on with together: they join and leave between any two tokens.

Each text keeps its own keys and values, its own mask and its own count of thoughts; what is written for it is what
would be written for it alone.

Legend: B texts, Q new tokens of each, S tokens so far with padding on the left, V vocabulary, J heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from quietstar.journal import DecodingStep, Journal
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.serving.sampling import GREEDY_BELOW


@dataclass(frozen=True)
class Thinking:
    """How a text is thought about. Texts with the same one may share a batch unless it draws."""

    policy: ThinkPolicy
    temperature: float = 0.0
    """of thoughts; 0 takes the likeliest tokens"""
    top_p: float = 1.0

    @classmethod
    def of(cls, policy: ThinkPolicy, temperature: float, top_p: float) -> "Thinking":
        """The same for all settings that come to the same."""
        return cls(policy, temperature, top_p) if temperature >= GREEDY_BELOW else cls(policy)

    @property
    def draws(self) -> bool:
        """Whether random numbers are used: a text's thoughts would depend on its neighbours'."""
        return self.temperature > 0 or any(rule.name == "probability" for rule in self.policy.rules)


class Batch:
    """Texts that are read and thought about together.

    Args:
        model: in evaluation mode.
        thinking: how it thinks about all of them.
        generator: source of the random numbers of thoughts and policies, on the model's device.
        n_texts: B, of which nothing is read yet.
    """

    def __init__(
        self,
        model: QuietStarForCausalLM,
        thinking: Thinking,
        generator: torch.Generator | None = None,
        n_texts: int = 0,
    ) -> None:
        self.model, self.thinking, self.generator = model, thinking, generator
        self.journal = Journal(thinking.policy, keep=True, top_k=0)
        # without a config, sliding layers keep everything too: texts of any lengths can be put side by side
        self.cache = DynamicCache()
        self.mask = torch.zeros(n_texts, 0, dtype=torch.long, device=model.device)
        """[B, S], 0 at padding"""

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def n_read(self) -> int:
        """S"""
        return self.mask.shape[1]

    @torch.no_grad()
    def skim(self, input_ids: Tensor) -> None:
        """Read tokens [B, Q], no padding among them, without thinking: a prompt before its last token."""
        self._forward(input_ids, think="never")

    @torch.no_grad()
    def read(self, input_ids: Tensor, top_k: int = 0) -> tuple[Tensor, DecodingStep]:
        """Read a token [B, 1] of each text, and think after it where the policy says so.

        Args:
            input_ids: the tokens.
            top_k: how many of the likeliest tokens of the three predictions are written down.

        Returns:
            logits [B, V] of the next token, and what was thought.
        """
        self.journal.top_k = top_k
        logits = self._forward(
            input_ids,
            journal=self.journal,
            thought_temperature=self.thinking.temperature,
            thought_top_p=self.thinking.top_p,
            generator=self.generator,
        )
        return logits, self.journal.steps.pop()

    def _forward(self, input_ids: Tensor, **how: object) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(input_ids)], dim=1)
        output = self.model(
            input_ids,
            self.mask,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **{"thought_temperature": 0.0, **how},
        )
        return output.logits[:, -1]

    def keep(self, rows: list[int]) -> None:
        """Go on with these texts only, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        self.journal.reorder(index)
        self.mask = self.mask[index]
        # columns that are padding in every text that is left
        first = int(self.mask.any(0).long().argmax()) if self.mask.numel() else self.n_read
        self.mask = self.mask[:, first:]
        for layer in self.cache.layers:
            layer.keys, layer.values = (of[index, :, first:] for of in (layer.keys, layer.values))

    def join(self, other: "Batch", n: int = 1) -> None:
        """Put the text of another batch, only skimmed so far, n times after one's own; the other is left alone."""
        S, all_of = max(self.n_read, other.n_read), (self, *[other] * n)
        cache = DynamicCache()
        for index in range(max(len(self.cache.layers), len(other.cache.layers))):
            cache.update(*(_side_by_side(all_of, index, name, S) for name in ("keys", "values")), index)
        self.journal.add(n)
        self.cache = cache
        self.mask = torch.cat([pad(of.mask, (S - of.n_read, 0)) for of in all_of])

    def close(self) -> None:
        """Let go of the cache: journal and cache know each other."""
        self.journal.close()


def _side_by_side(batches: Sequence[Batch], layer: int, name: str, S: int) -> Tensor:
    """[B, J, S, d]: keys or values of all batches in a layer, filled on the left."""
    found = [getattr(of.cache.layers[layer], name) if of.n_read else None for of in batches]
    like = next(of for of in found if of is not None)
    J, d = like.shape[1], like.shape[3]
    # of a text of which nothing is read there are none
    each = [like.new_zeros(len(of), J, 0, d) if has is None else has for of, has in zip(batches, found, strict=True)]
    return torch.cat([_pad_keys(of, S) for of in each])


def _pad_keys(of: Tensor, S: int) -> Tensor:
    """[B, J, ., d] -> [B, J, S, d], filled on the left."""
    return pad(of, (0, 0, S - of.shape[2], 0))
