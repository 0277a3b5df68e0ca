"""Predictions of a model after a given thought.

Legend: k tokens of the thought, D hidden size, V vocabulary.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from quietstar.inspection.reading import Reading
from quietstar.journal import TopTokens
from quietstar.model import QuietStarForCausalLM
from quietstar.output import tokens_of
from quietstar.reporting.tables import finite
from quietstar.serving.faults import RequestError
from quietstar.serving.group import described
from quietstar.serving.prompts import TOKENS_AT_ONCE
from quietstar.serving.values import LONGEST_THOUGHT
from quietstar.text.pieces import token_text


@dataclass(slots=True)
class Question:
    """A text, and a thought after its last token."""

    token_ids: list[int]
    thought_ids: list[int] | None
    """of any length; None for the model's own, sampled greedily"""
    top_k: int = 5
    n_ahead: int | None = None
    """tokens of the model's own thought, start and end included; None is its config's"""

    def check(self, context: int | None) -> None:
        """Raise RequestError if the thought is too long for the server, or for the model's context after this text."""
        n = 0 if self.thought_ids is None else len(self.thought_ids)
        if n > LONGEST_THOUGHT:
            raise RequestError(400, f"the thought has {n} tokens; give at most {LONGEST_THOUGHT}", param="thought")
        reach = len(self.token_ids) + n + 2
        if context is not None and reach > context:
            raise RequestError(
                400,
                f"text, thought, start and end have {reach} tokens; the model's context is {context}: shorten one",
                param="thought",
                code="context_length_exceeded",
            )

    def answer(
        self, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase
    ) -> Generator[None, None, dict[str, Any]]:
        """Return the body of the response: the thought, its mixing weight, and three predictions; it runs in parts."""
        ids = torch.tensor(self.token_ids, device=model.device)
        reading = Reading(model, ids, at_once=TOKENS_AT_ONCE, n_ahead=self.n_ahead)
        while not reading.is_read:
            yield
            reading.read_on(TOKENS_AT_ONCE)
        last = torch.tensor([len(self.token_ids) - 1], device=model.device)
        if self.thought_ids is None:
            thoughts = reading.think(last)
        else:
            thoughts = torch.tensor([self.thought_ids], dtype=torch.long, device=model.device)
        predicted = reading.after(last, thoughts)
        states = {"base": reading.h_base[-1], "thought_alone": predicted.alone[0, 0], "mixed": predicted.mixed[0, 0]}
        thought = tokens_of(thoughts)[0]
        answer: dict[str, Any] = {
            "thought": {"ids": thought, "tokens": [token_text(tokenizer, token) for token in thought]},
            "mixing_weight": finite(float(predicted.weight[0, 0])),
        }
        for name, state in states.items():
            top = TopTokens.of(reading.logits(state), self.top_k)
            answer[name] = described(tokenizer, top.ids.tolist(), top.logprob.tolist())
        return answer
