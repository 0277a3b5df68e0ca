"""A continuous batch of a thinking model: texts join and leave between any two tokens.

Each text has its own keys and values, mask and count of thoughts, so that it is continued exactly as it would be alone.

Legend: B texts, Q new tokens of each, S tokens so far with padding on the left, V vocabulary, J heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from quietstar.base.draws import RowGenerators
from quietstar.journal import DecodingStep, Journal
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.serving.sampling import GREEDY_BELOW


@dataclass(frozen=True)
class Thinking:
    """How to think about a text. Texts with the same settings share a batch."""

    policy: ThinkPolicy
    n_ahead: int
    """tokens of a thought, start and end included"""
    temperature: float = 0.0
    """temperature of thoughts; 0 is greedy"""
    top_p: float = 1.0

    @classmethod
    def of(cls, policy: ThinkPolicy, n_ahead: int, temperature: float, top_p: float) -> "Thinking":
        """Return equal objects for settings with the same effect."""
        return cls(policy, n_ahead, temperature, top_p) if temperature >= GREEDY_BELOW else cls(policy, n_ahead)


class Batch:
    """Texts that the model reads and thinks about together: B of them, without tokens yet."""

    def __init__(self, model: QuietStarForCausalLM, thinking: Thinking, n_texts: int = 0) -> None:
        self.model, self.thinking = model, thinking
        self.journal = Journal(thinking.policy, keep=True, top_k=0)
        # without a config, sliding layers keep all tokens, too, and texts of any lengths can be padded to one
        self.cache = DynamicCache()
        self.mask = torch.zeros(n_texts, 0, dtype=torch.long, device=model.device)
        """[B, S], 0 at padding"""
        self.ids = torch.zeros_like(self.mask)
        """[B, S]"""

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def n_read(self) -> int:
        """S"""
        return self.mask.shape[1]

    @torch.no_grad()
    def skim(self, input_ids: Tensor) -> None:
        """Read tokens [B, Q] without padding and without thinking: a prompt without its last token."""
        self._forward(input_ids, think="never")

    @torch.no_grad()
    def read(
        self, input_ids: Tensor, generators: RowGenerators | None = None, top_k: int = 0
    ) -> tuple[Tensor, DecodingStep]:
        """Read one token of each text, and think after it if the policy says so.

        Args:
            input_ids: [B, 1]
            generators: sources of random numbers for thoughts and policies, on the model's device.
            top_k: the step has so many of the likeliest tokens of its three predictions.

        Returns:
            logits [B, V] of the next token, and the step with the thoughts.
        """
        self.journal.top_k = top_k
        logits = self._forward(
            input_ids,
            journal=self.journal,
            thought_temperature=self.thinking.temperature,
            thought_top_p=self.thinking.top_p,
            generator=generators,
        )
        return logits, self.journal.steps.pop()

    def _forward(self, input_ids: Tensor, **how: object) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(input_ids)], dim=1)
        self.journal.all_ids = self.ids = torch.cat([self.ids, input_ids], dim=1)
        output = self.model(
            input_ids,
            self.mask,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
            n_ahead=self.thinking.n_ahead,
            **{"thought_temperature": 0.0, **how},
        )
        return output.logits[:, -1]

    def keep(self, texts: list[int]) -> None:
        """Keep only these texts, in this order."""
        index = torch.tensor(texts, dtype=torch.long, device=self.mask.device)
        self.journal.reorder(index)
        self.mask = self.mask[index]
        # drop columns that are padding in all remaining texts
        first = int(self.mask.any(0).long().argmax()) if self.mask.numel() else self.n_read
        self.mask, self.ids = self.mask[:, first:], self.ids[index, first:]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]

    def join(self, other: "Batch", n: int = 1) -> None:
        """Append n copies of another batch's only text, which has been skimmed; the other batch does not change."""
        S, batches = max(self.n_read, other.n_read), (self, *[other] * n)
        cache = DynamicCache()
        for index in range(max(len(self.cache.layers), len(other.cache.layers))):
            cache.update(*(_concatenated(batches, index, name, S) for name in ("keys", "values")), index)
        self.journal.add(n)
        self.cache = cache
        self.mask, self.ids = (
            torch.cat([pad(each, (S - each.shape[1], 0)) for each in of_batches])
            for of_batches in zip(*((batch.mask, batch.ids) for batch in batches), strict=True)
        )

    def close(self) -> None:
        """Free the cache, which refers to the journal and is referred to by it."""
        self.journal.close()


def _concatenated(batches: Sequence[Batch], layer: int, name: str, S: int) -> Tensor:
    """Return the keys or values of all batches in a layer, padded on the left: [B, J, S, d]."""
    # a batch that has read nothing has no keys and values yet
    states = [getattr(batch.cache.layers[layer], name) if batch.n_read else None for batch in batches]
    like = next(state for state in states if state is not None)
    J, d = like.shape[1], like.shape[3]
    found = [
        like.new_zeros(len(batch), J, 0, d) if state is None else state
        for batch, state in zip(batches, states, strict=True)
    ]
    return torch.cat([_pad_left(state, S) for state in found])


def _pad_left(state: Tensor, S: int) -> Tensor:
    """Pad keys or values on the left: [B, J, ., d] -> [B, J, S, d]."""
    return pad(state, (0, 0, S - state.shape[2], 0))
