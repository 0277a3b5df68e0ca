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
from quietstar.base.loading import evaluating
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
from quietstar.inspection.measure import compare, next_tokens
from quietstar.inspection.reading import Reading
from quietstar.inspection.records import Recorder, numbers
from quietstar.inspection.schema import schema_of
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from quietstar.model import QuietStarForCausalLM
from quietstar.output import ENDED
from quietstar.policy import ThinkPolicy
from quietstar.think import Sampling


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

    The model is put into evaluation mode meanwhile, and the process's random state does not change. `before` is the
    plain model that it was trained from; None takes its base model without adapters, where it has some. `origin`, where
    the texts come from, is recorded among the trace's settings. `progress` is called with the number of passes over
    texts that are done, and of all.

    Raises:
        SettingsError: a text is empty, too long or has tokens that the model lacks, or a setting does not fit the model
            or tokenizer.
    """
    if not texts:
        raise SettingsError("there is no text to trace; give at least one")
    for text in texts:
        _check(model, text, model.config.resolve_n_ahead(settings.n_ahead))
    if len({text.is_own for text in texts}) > 1:
        raise SettingsError("some texts are the model's own and others are not; trace them apart")
    if before is not None:
        check_texts(before, [text.ids for text in texts])
    with evaluating(model):
        return _Tracing(model, tokenizer, settings, before, progress, 2 * len(texts)).trace(texts, name, origin or {})


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
        self.n_ahead = model.config.resolve_n_ahead(settings.n_ahead)
        self.M = settings.n_ahead_talk or model.config.n_ahead_talk
        self.given = None
        if settings.thought is not None:
            self.given = typed_thought(tokenizer, settings.thought)
            check_ids(model, self.given.tolist(), "thought")
        self.interventions = interventions_of(list(settings.interventions), self.n_ahead - 2, self.given is not None)
        self.filler = None
        if FILLER in settings.interventions:
            self.filler = filler_token(tokenizer, settings.filler)
            check_ids(model, [self.filler], "filler")
        self.random_tokens = torch.zeros(0, dtype=torch.long)
        if RANDOM in settings.interventions:
            self.random_tokens = plain_tokens(tokenizer, model.config.vocab_size, model.config.suppressed)
        self.generator = torch.Generator(model.device).manual_seed(settings.seed)
        names = schema_of([each.name for each in self.interventions])
        self.recorder = Recorder(tokenizer, names, self.M, settings.top_k)

    def trace(self, texts: Sequence[TextToTrace], name: str, origin: dict[str, Any]) -> Trace:
        """See `trace`."""
        places, thoughts = [], []
        for row, text in enumerate(texts):
            reading = self._read(text)
            at, tokens = self._observe(reading, text, row)
            places.append(at)
            thoughts.append(tokens)
            self._step()
        changed = self._replace(torch.cat(thoughts).cpu())
        first = begin = 0
        for text, at, own in zip(texts, places, thoughts, strict=True):
            if len(texts) > 1:  # the reading of a single text is still there
                reading = self._read(text)
            part = slice(first, first + len(at))
            replaced = {each: None if tokens is None else tokens[part] for each, tokens in changed.items()}
            self._intervene(reading, text, at, own, begin, replaced)
            first, begin = part.stop, begin + len(text.ids)
            self._step()
        return Trace(
            columns=self.recorder.columns,
            labels={each.name: each.label for each in self.interventions},
            model=name or self._name_of_model(),
            settings=self._settings() | origin,
            is_own=texts[0].is_own,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def _read(self, text: TextToTrace) -> Reading:
        return Reading(self.model, torch.tensor(text.ids, dtype=torch.long), n_ahead=self.n_ahead)

    def _step(self) -> None:
        self.n_done += 1
        if self.progress is not None:
            self.progress(self.n_done, self.n_passes)

    def _name_of_model(self) -> str:
        """Return the name of the model's folder, or of the base model's if it was not loaded from one."""
        where = self.model.config.name_or_path or self.model.base_lm.name_or_path
        return name_of(where) or type(self.model.base_lm).__name__

    def _settings(self) -> dict[str, Any]:
        settings = self.settings
        before = description(self.model, self.before)
        return {
            "think": str(self.policy),
            "n_ahead": self.n_ahead,
            "n_ahead_talk": self.M,
            "thought_temperature": settings.thought_temperature,
            "thought_top_p": settings.thought_top_p,
            "top_k": settings.top_k,
            "interventions": [each.name for each in self.interventions],
            **({} if self.filler is None else {"filler": self.recorder.token(self.filler)}),
            **({} if settings.thought is None else {"thought": settings.thought}),
            **({} if before is None else {"before": before}),
            "seed": settings.seed,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def _observe(self, reading: Reading, text: TextToTrace, row: int) -> tuple[Tensor, Tensor]:
        """Add a text's records; return positions [C] thought at, and thoughts [C, K]."""
        at, thoughts, reasons = self._think(reading, text)
        targets = next_tokens(reading, text.labels)
        before = text.before_logprob
        if before is None:
            before = numbers(logprob_before(self.model, self.before, reading, targets))
        self.recorder.observe(reading, row, at, thoughts, reasons, targets, before)
        return at, thoughts

    def _think(self, reading: Reading, text: TextToTrace) -> tuple[Tensor, Tensor, list[str]]:
        """Return positions [C], thoughts [C, K] and reasons [S]."""
        if text.thoughts is not None:
            at = torch.tensor(sorted(text.thoughts), dtype=torch.long, device=reading.input_ids.device)
            K = self.n_ahead - 2
            padded = [[*text.thoughts[i], *[ENDED] * (K - len(text.thoughts[i]))] for i in at.tolist()]
            tokens = torch.tensor(padded, dtype=torch.long, device=at.device)
            given = text.reasons or {}
            return at, tokens.view(len(at), K), [given.get(i, "") for i in range(len(reading))]
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

    def _replace(self, thoughts: Tensor) -> dict[Intervention, Tensor | None]:
        """Return thoughts [N, k] for each intervention; None removes the thoughts, or is impossible."""
        if not self.interventions:
            return {}
        now = Situation(
            thoughts=thoughts,
            tokens=self.random_tokens,
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
    ) -> None:
        """Record what each intervention does in place of a text's thoughts [C, K] at positions [C].

        The text's first record is `begin`.
        """
        records = [begin + i for i in at.tolist()]
        mixed = reading.after(at, own).mixed[:, 0]  # again, in batches of the same shape: rounding is then the same
        targets = next_tokens(reading, text.labels)[at]
        for each, thoughts in replaced.items():
            if thoughts is not None:
                states = reading.after(at, thoughts.to(at.device)).mixed[:, 0]
            elif each.replace is None:
                states = reading.h_base[at]
            else:
                continue
            self.recorder.intervene(each.name, records, compare(reading, mixed, states, targets), thoughts)


def _check(model: QuietStarForCausalLM, text: TextToTrace, n_ahead: int) -> None:
    """Raise SettingsError if what is known about a text does not fit it, or the model."""
    S, K = len(text.ids), n_ahead - 2
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
        if len(thought) > K or (len(thought) < K and model.end_head is None):
            raise SettingsError(f"a thought has {len(thought)} tokens; give {K}, as n_ahead is {n_ahead}")
