"""Make traces: think over texts, look at what was predicted, and try other thoughts in the same places.

Legend: S tokens of a text, C positions thought at, N of them in all texts, K tokens of a thought, M true tokens after
it.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.base.ids import check_ids
from quietstar.errors import SettingsError
from quietstar.inference.loading import name_of
from quietstar.inspection.before import check_texts, description, logprob_before
from quietstar.inspection.interventions import (
    FILLER,
    RANDOM,
    Intervention,
    Situation,
    filler_token,
    interventions_of,
    plain_tokens,
    typed_thought,
)
from quietstar.inspection.measure import NO_TARGET, Look, compare, look, next_tokens, true_logprob
from quietstar.inspection.reading import Reading
from quietstar.inspection.schema import EFFECTS, schema_of
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.predict import Sampling
from quietstar.reporting.tables import finite
from quietstar.text.pieces import decoded, pieces_of, token_text

Columns = dict[str, list[Any]]


@torch.no_grad()
def trace(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[TextToTrace],
    settings: TraceSettings,
    *,
    name: str = "",
    origin: dict[str, Any] | None = None,
    before: PreTrainedModel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """Record what is thought over texts, and what other thoughts in the same places would do.

    The model is in evaluation mode meanwhile, and random numbers of the process are left alone.

    Args:
        model: thinks.
        tokenizer: of the model.
        texts: each is read by itself.
        settings: how.
        name: of the model, for the report.
        origin: where the texts come from, to be written down among the trace's settings.
        before: the plain model that `model` was trained from, see `quietstar.inspection.before`; None takes the base
            model without its adapters where it has some.
        progress: told how many of how many passes over texts are done.

    Raises:
        SettingsError: a text is empty, too long or of tokens that the model lacks, or a setting does not fit the model
            or tokenizer.
    """
    if not texts:
        raise SettingsError("there is no text to trace; give at least one")
    for text in texts:
        _check(model, text)
    if len({text.is_own for text in texts}) > 1:
        raise SettingsError("some texts are the model's own and others are not; trace them apart")
    if before is not None:
        check_texts(before, [text.ids for text in texts])
    was_training = model.training
    model.eval()
    try:
        return _Tracing(model, tokenizer, settings, before, progress, 2 * len(texts)).trace(texts, name, origin or {})
    finally:
        model.train(was_training)


class _Tracing:
    """One call of `trace`."""

    def __init__(
        self,
        model: QuietStarForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        settings: TraceSettings,
        before: PreTrainedModel | None,
        progress: Callable[[int, int], None] | None,
        n_passes: int,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.before = model, tokenizer, settings, before
        self.progress, self.n_passes, self.n_done = progress, n_passes, 0
        self.policy = ThinkPolicy.parse(settings.think)
        self.M = settings.n_ahead_talk or model.config.n_ahead_talk
        self.given = None
        if settings.thought is not None:
            self.given = typed_thought(tokenizer, settings.thought)
            check_ids(model, self.given.tolist(), "thought")
        self.interventions = interventions_of(
            list(settings.interventions), model.config.n_thought_tokens, self.given is not None
        )
        self.filler = None
        if FILLER in settings.interventions:
            self.filler = filler_token(tokenizer, settings.filler)
            check_ids(model, [self.filler], "filler")
        self.words = torch.zeros(0, dtype=torch.long)
        if RANDOM in settings.interventions:
            self.words = plain_tokens(tokenizer, model.config.vocab_size, model.config.suppressed)
        self.generator = torch.Generator(model.device).manual_seed(settings.seed)
        self.texts_of_tokens: dict[int, str] = {}

    def trace(self, texts: Sequence[TextToTrace], name: str, origin: dict[str, Any]) -> Trace:
        """See `trace`."""
        schema = schema_of([each.name for each in self.interventions])
        columns: Columns = {column: [] for column in schema}
        places, thoughts = [], []
        for row, text in enumerate(texts):
            reading = Reading(self.model, torch.tensor(text.ids, dtype=torch.long))
            at, tokens = self._observe(reading, text, row, columns)
            places.append(at)
            thoughts.append(tokens)
            self._step()
        changed = self._replace(torch.cat(thoughts).cpu())
        first = begin = 0
        for text, at, own in zip(texts, places, thoughts, strict=True):
            if len(texts) > 1:  # of one text the reading is at hand
                reading = Reading(self.model, torch.tensor(text.ids))
            some = slice(first, first + len(at))
            replaced = {each: None if of is None else of[some] for each, of in changed.items()}
            self._intervene(reading, text, at, own, begin, replaced, columns)
            first, begin = some.stop, begin + len(text.ids)
            self._step()
        return Trace(
            columns=columns,
            labels={each.name: each.label for each in self.interventions},
            model=name or self._name_of_model(),
            settings=self._settings() | origin,
            is_own=texts[0].is_own,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def _step(self) -> None:
        self.n_done += 1
        if self.progress is not None:
            self.progress(self.n_done, self.n_passes)

    def _name_of_model(self) -> str:
        """That of its folder, or of the base model's where it was made of one just now."""
        where = self.model.config.name_or_path or self.model.base_lm.name_or_path
        return name_of(where) or type(self.model.base_lm).__name__

    def _settings(self) -> dict[str, Any]:
        settings = self.settings
        config = self.model.config
        before = description(self.model, self.before)
        return {
            "think": str(self.policy),
            "n_ahead": config.n_ahead,
            "n_ahead_talk": self.M,
            "thought_temperature": settings.thought_temperature,
            "thought_top_p": settings.thought_top_p,
            "top_k": settings.top_k,
            "interventions": [each.name for each in self.interventions],
            **({} if self.filler is None else {"filler": self._token(self.filler)}),
            **({} if settings.thought is None else {"thought": settings.thought}),
            **({} if before is None else {"before": before}),
            "seed": settings.seed,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    # -------------------------------------------------------------- what the model does

    def _observe(self, reading: Reading, text: TextToTrace, row: int, columns: Columns) -> tuple[Tensor, Tensor]:
        """Add a text's records; positions [C] thought at, and thoughts [C, K]."""
        S = len(reading)
        at, thoughts, reasons = self._think(reading, text)
        ids = reading.input_ids
        next_ids = [*ids.tolist()[1:], None]
        targets = next_tokens(reading, text.labels)
        base = look(reading, reading.h_base, targets, self.settings.top_k)
        said = reading.after(at, thoughts, self.M)
        ahead = at[:, None] + torch.arange(self.M, device=at.device)  # [C, M]: the base position that predicts it
        aims = torch.where(ahead < S, targets[ahead.clamp(max=S - 1)], NO_TARGET)
        # without the thought once more, in the same places: nothing may differ by rounding but what the thought does
        without = reading.h_base[ahead.clamp(max=S - 1)]
        before = true_logprob(reading, without.flatten(0, 1), aims.flatten()).view(-1, self.M)
        alone, mixed = (
            look(reading, of.flatten(0, 1), aims.flatten(), self.settings.top_k) for of in (said.alone, said.mixed)
        )
        after = mixed.logprob.view(-1, self.M)
        gain = after - before
        reward = gain.sum(1)  # NaN where not all M are there

        def of_next(values: Tensor, position: int) -> list[Any]:
            """Of the next M tokens, those that exist."""
            return _numbers(values[: min(self.M, S - 1 - position)])

        written = {position: c for c, position in enumerate(at.tolist())}

        def where_thought(values: list[Any]) -> list[Any]:
            return [values[written[i]] if i in written else None for i in range(S)]

        of_row: Columns = {
            "row": [row] * S,
            "position": list(range(S)),
            "token_id": ids.tolist(),
            "piece": pieces_of(self.tokenizer, ids.tolist()),
            "next_id": next_ids,
            "next_token": [self._token(token) for token in next_ids],
            "thought": [i in written for i in range(S)],
            "reason": reasons,
            "thought_ids": where_thought(thoughts.tolist()),
            "thought_tokens": where_thought([self._tokens(each) for each in thoughts.tolist()]),
            "thought_text": where_thought([decoded(self.tokenizer, each) for each in thoughts.tolist()]),
            "thought_logprob": where_thought(_numbers(said.thought_logprob)),
            "mixing_weight": where_thought(_numbers(said.weight[:, 0])),
            "reward": where_thought(_numbers(reward)),
            "gain": where_thought(_numbers(gain[:, 0])),
            "base_logprob": [of_next(base.logprob[i:], i) for i in range(S)],
            "alone_logprob": where_thought(list(map(of_next, alone.logprob.view(-1, self.M), written))),
            "mixed_logprob": where_thought(list(map(of_next, after, written))),
            "before_logprob": (
                _numbers(logprob_before(self.model, self.before, reading, targets))
                if text.before_logprob is None
                else text.before_logprob
            ),
            "base_entropy": _numbers(base.entropy),
            **self._top("base", base, slice(None), None),
            **self._top("alone", alone, slice(None, None, self.M), where_thought),
            **self._top("mixed", mixed, slice(None, None, self.M), where_thought),
        }
        for name, values in of_row.items():
            columns[name] += values
        for name in columns.keys() - of_row.keys():
            columns[name] += [None] * S  # filled in by _intervene
        return at, thoughts

    def _think(self, reading: Reading, text: TextToTrace) -> tuple[Tensor, Tensor, list[str]]:
        """Positions [C], thoughts [C, K], reasons [S]."""
        if text.thoughts is not None:
            at = torch.tensor(sorted(text.thoughts), dtype=torch.long, device=reading.input_ids.device)
            K = self.model.config.n_thought_tokens
            words = torch.tensor([text.thoughts[i] for i in at.tolist()], dtype=torch.long, device=at.device)
            given = text.reasons or {}
            return at, words.view(len(at), K), [given.get(i, "") for i in range(len(reading))]
        may_think = torch.full_like(reading.input_ids, text.may_think is None, dtype=torch.bool)
        may_think[list(text.may_think or ())] = True
        at, reasons = reading.decide(self.policy, may_think, self.generator)
        sampling = Sampling(
            temperature=self.settings.thought_temperature,
            top_p=self.settings.thought_top_p,
            suppressed=self.model.suppressed,
            generator=self.generator,
        )
        return at, reading.think(at, sampling), reasons

    def _top(self, name: str, of: Look, some: slice, where_thought: Callable[[list[Any]], list[Any]] | None) -> Columns:
        ids, logprob = of.top.ids[some].tolist(), _numbers(of.top.logprob[some])
        found = {
            f"{name}_top_ids": ids,
            f"{name}_top_tokens": [self._tokens(each) for each in ids],
            f"{name}_top_logprob": logprob,
        }
        return found if where_thought is None else {key: where_thought(values) for key, values in found.items()}

    # -------------------------------------------------------------- what else it might have thought

    def _replace(self, thoughts: Tensor) -> dict[Intervention, Tensor | None]:
        """[N, k] for each intervention; None removes the thoughts, or cannot be done."""
        if not self.interventions:
            return {}
        now = Situation(
            thoughts=thoughts,
            tokens=self.words,
            filler=self.filler,
            given=self.given,
            generator=torch.Generator().manual_seed(self.settings.seed),
        )
        return {each: None if each.replace is None else each.replace(now) for each in self.interventions}

    def _intervene(
        self,
        reading: Reading,
        text: TextToTrace,
        at: Tensor,
        own: Tensor,
        begin: int,
        replaced: dict[Intervention, Tensor | None],
        columns: Columns,
    ) -> None:
        """Fill in what each intervention does in place of a text's thoughts [C, K] at positions [C].

        The text's first record is `begin`.
        """
        places = [begin + i for i in at.tolist()]
        mixed = reading.after(at, own).mixed[:, 0]  # again, in batches of the same shape: rounding is the same, too
        targets = next_tokens(reading, text.labels)[at]
        for each, thoughts in replaced.items():
            if thoughts is not None:
                states = reading.after(at, thoughts.to(at.device)).mixed[:, 0]
            elif each.replace is None:
                states = reading.h_base[at]
            else:
                continue
            effect = compare(reading, mixed, states, targets)
            words = [None] * len(at) if thoughts is None else thoughts.tolist()
            found = {
                "delta": _numbers(effect.delta),
                "kl": _numbers(effect.kl),
                "flips": effect.flips.tolist(),
                "top_id": effect.top.tolist(),
                "top_token": self._tokens(effect.top.tolist()),
                "thought_ids": words,
                "thought_tokens": [None if of is None else self._tokens(of) for of in words],
            }
            assert found.keys() == EFFECTS.keys()
            for effect_name, values in found.items():
                for place, value in zip(places, values, strict=True):
                    columns[f"{each.name}_{effect_name}"][place] = value

    def _token(self, token: int | None) -> str | None:
        if token is None:
            return None
        if token not in self.texts_of_tokens:
            self.texts_of_tokens[token] = token_text(self.tokenizer, token)
        return self.texts_of_tokens[token]

    def _tokens(self, ids: list[int]) -> list[str | None]:
        return [self._token(token) for token in ids]


def _check(model: QuietStarForCausalLM, text: TextToTrace) -> None:
    """Raise SettingsError where what is known of a text does not fit it, or the model."""
    S, K = len(text.ids), model.config.n_thought_tokens
    check_ids(model, text.ids, "the text")
    if text.labels is not None and len(text.labels) != S:
        raise SettingsError(f"a text has {S} tokens and {len(text.labels)} labels; give a label for each token")
    if text.before_logprob is not None and len(text.before_logprob) != S:
        raise SettingsError(
            f"a text has {S} tokens and {len(text.before_logprob)} of before_logprob; give one for each"
        )
    thoughts = text.thoughts or {}
    for position in (*(text.may_think or ()), *thoughts):
        if not 0 <= position < S:
            raise SettingsError(f"a thought is asked for at position {position} of {S}; give one from 0 to {S - 1}")
    for thought in thoughts.values():
        check_ids(model, thought, "a thought")
        if len(thought) != K:
            raise SettingsError(f"a thought has {len(thought)} tokens; give {K}, as the model thinks")


def _numbers(values: Tensor) -> list[Any]:
    """Python's numbers; null in place of what is not finite."""
    return finite(values.double().tolist())
