"""Records of a trace: what was measured at each position, as columns of plain values.

Legend: S tokens of a text, C positions thought at, K tokens of a thought, M true tokens after it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.inspection.measure import NO_TARGET, Effect, Look, look, true_logprob
from quietstar.inspection.reading import Reading
from quietstar.inspection.schema import EFFECTS
from quietstar.output import tokens_of
from quietstar.reporting.tables import finite
from quietstar.text.pieces import decoded, pieces_of, token_text

Columns = dict[str, list[Any]]


class Recorder:
    """Writes the records of a trace, one for each position, with the top_k likeliest tokens of each prediction."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: Iterable[str], n_ahead_talk: int, top_k: int) -> None:
        self.tokenizer, self.M, self.top_k = tokenizer, n_ahead_talk, top_k
        self.columns: Columns = {name: [] for name in names}
        self._texts_of_tokens: dict[int, str] = {}

    def observe(
        self,
        reading: Reading,
        row: int,
        at: Tensor,
        thoughts: Tensor,
        reasons: list[str],
        targets: Tensor,
        before_logprob: list[float | None],
    ) -> None:
        """Add the records of a text of S tokens, with thoughts [C, K] at positions [C].

        Each position has the reason of its thought (empty if it has none), its target (the token that follows; see
        `next_tokens`), and the target's log-probability before training.
        """
        S, M = len(reading), self.M
        ids = reading.input_ids.tolist()
        next_ids = [*ids[1:], None]
        base = look(reading, reading.h_base, targets, self.top_k)
        said = reading.after(at, thoughts, M)
        ahead = at[:, None] + torch.arange(M, device=at.device)  # [C, M]: the base position of the same prediction
        aims = torch.where(ahead < S, targets[ahead.clamp(max=S - 1)], NO_TARGET)
        # without the thought again, in batches of the same shape: rounding is then the same
        without = reading.h_base[ahead.clamp(max=S - 1)]
        before = true_logprob(reading, without.flatten(0, 1), aims.flatten()).view(-1, M)
        alone, mixed = (
            look(reading, states.flatten(0, 1), aims.flatten(), self.top_k) for states in (said.alone, said.mixed)
        )
        after = mixed.logprob.view(-1, M)
        gain = after - before
        reward = gain.sum(1)  # NaN unless there are M true tokens

        def of_next(values: Tensor, position: int) -> list[Any]:
            """Return the values of the next M tokens, as far as there are any."""
            return numbers(values[: min(M, S - 1 - position)])

        own = tokens_of(thoughts)
        index_of = {position: index for index, position in enumerate(at.tolist())}

        def where_thought(values: list[Any]) -> list[Any]:
            return [values[index_of[i]] if i in index_of else None for i in range(S)]

        of_text: Columns = {
            "row": [row] * S,
            "position": list(range(S)),
            "token_id": ids,
            "piece": pieces_of(self.tokenizer, ids),
            "next_id": next_ids,
            "next_token": [self.token(token) for token in next_ids],
            "thought": [i in index_of for i in range(S)],
            "reason": reasons,
            "thought_ids": where_thought(own),
            "thought_tokens": where_thought([self.tokens(thought) for thought in own]),
            "thought_text": where_thought([decoded(self.tokenizer, thought) for thought in own]),
            "thought_logprob": where_thought(
                [logprob[: len(thought)] for logprob, thought in zip(numbers(said.thought_logprob), own, strict=True)]
            ),
            "mixing_weight": where_thought(numbers(said.weight[:, 0])),
            "reward": where_thought(numbers(reward)),
            "gain": where_thought(numbers(gain[:, 0])),
            "base_logprob": [of_next(base.logprob[i:], i) for i in range(S)],
            "alone_logprob": where_thought(list(map(of_next, alone.logprob.view(-1, M), index_of))),
            "mixed_logprob": where_thought(list(map(of_next, after, index_of))),
            "before_logprob": before_logprob,
            "base_entropy": numbers(base.entropy),
            **self._top("base", base, slice(None), None),
            **self._top("alone", alone, slice(None, None, M), where_thought),
            **self._top("mixed", mixed, slice(None, None, M), where_thought),
        }
        for name, values in of_text.items():
            self.columns[name] += values
        for name in self.columns.keys() - of_text.keys():
            self.columns[name] += [None] * S  # filled in by `intervene`

    def _top(
        self, name: str, seen: Look, part: slice, where_thought: Callable[[list[Any]], list[Any]] | None
    ) -> Columns:
        ids, logprob = seen.top.ids[part].tolist(), numbers(seen.top.logprob[part])
        columns = {
            f"{name}_top_ids": ids,
            f"{name}_top_tokens": [self.tokens(tokens) for tokens in ids],
            f"{name}_top_logprob": logprob,
        }
        return columns if where_thought is None else {key: where_thought(values) for key, values in columns.items()}

    def intervene(self, name: str, records: list[int], effect: Effect, thoughts: Tensor | None) -> None:
        """Fill in what an intervention did to C records: thoughts [C, k] instead of the model's own, or none."""
        ids = [None] * len(records) if thoughts is None else tokens_of(thoughts)
        columns = {
            "delta": numbers(effect.delta),
            "kl": numbers(effect.kl),
            "flips": effect.flips.tolist(),
            "top_id": effect.top.tolist(),
            "top_token": self.tokens(effect.top.tolist()),
            "thought_ids": ids,
            "thought_tokens": [None if thought is None else self.tokens(thought) for thought in ids],
        }
        assert columns.keys() == EFFECTS.keys()
        for effect_name, values in columns.items():
            for record, value in zip(records, values, strict=True):
                self.columns[f"{name}_{effect_name}"][record] = value

    def token(self, token: int | None) -> str | None:
        """Return the text of a token."""
        if token is None:
            return None
        if token not in self._texts_of_tokens:
            self._texts_of_tokens[token] = token_text(self.tokenizer, token)
        return self._texts_of_tokens[token]

    def tokens(self, ids: list[int]) -> list[str | None]:
        """Return the text of each token."""
        return [self.token(token) for token in ids]


def numbers(values: Tensor) -> list[Any]:
    """Return Python numbers; null in place of values that are not finite."""
    return finite(values.double().tolist())
