"""Texts to trace: windows of a long text, or what a model writes after a prompt, with the thoughts that it had."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.base.ids import check_ids
from quietstar.base.rope import steady_length
from quietstar.errors import DataError, SettingsError, did_you_mean
from quietstar.inference.loading import context_length, prompt_ids
from quietstar.inference.text_settings import text_settings
from quietstar.inspection.before import load_before
from quietstar.inspection.interventions import typed_thought
from quietstar.inspection.observe import trace
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from quietstar.model import QuietStarForCausalLM
from quietstar.text.tokens import token_ids
from quietstar.text.unicode import check_text

MAX_LENGTH = 2048
"""tokens of a window, unless the model's context is shorter"""


def windows(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    settings: TraceSettings,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    usual_length: int = MAX_LENGTH,
) -> list[TextToTrace]:
    """Cut at most `limit` tokens of a text into windows of at most max_length, with room for thoughts.

    Without max_length, windows are of usual_length, or as long as the context lets them be.

    Raises:
        SettingsError: thoughts leave no room for a text, or the text is not valid Unicode.
        DataError: the text has no token, or max_length does not fit the model's context.
    """
    check_text("the text", text)
    ids = token_ids(tokenizer, [text])[0][:limit]
    if not ids:
        raise DataError("the tokenizer makes no token of the text; give some text to read")
    room, branch = room_for_text(model, tokenizer, settings)
    if max_length is not None and room is not None and max_length > room:
        raise DataError(
            f"max_length is {max_length}, and a thought takes up to {branch} tokens more; the model's context is "
            f"{context_length(model)}: give at most {room}"
        )
    size = max_length or min(usual_length, room or usual_length)
    return [TextToTrace(ids=ids[first : first + size]) for first in range(0, len(ids), size)]


def room_for_text(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, settings: TraceSettings
) -> tuple[int | None, int]:
    """Return the most tokens of a text that leave room for thoughts at its end, and how far these reach past it.

    The first is None if the config gives no context length.

    Raises:
        SettingsError: there is no room for any text.
    """
    # start, the thought, end, and the true tokens after it but for the last, which is only predicted
    branch = model.config.resolve_n_ahead(settings.n_ahead) + (settings.n_ahead_talk or model.config.n_ahead_talk) - 1
    if settings.thought is not None:
        branch = max(branch, len(typed_thought(tokenizer, settings.thought)) + 2)
    context = context_length(model)
    if context is not None and branch >= context:
        raise SettingsError(
            f"a thought and what is read after it take up to {branch} tokens, and the model's context is {context}; "
            "give a smaller n_ahead or n_ahead_talk, or a shorter thought"
        )
    return (None if context is None else context - branch), branch


def written(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    n_tokens: int,
    settings: TraceSettings,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> TextToTrace:
    """Return up to n_tokens that the model writes after a prompt, with the thoughts that it had before each.

    Raises:
        SettingsError: thoughts leave no room for a text, or the prompt is not valid Unicode.
        DataError: the prompt has no token, or leaves no room for n_tokens more.
    """
    check_text("the prompt", prompt)
    ids = prompt_ids(tokenizer, prompt)
    room, branch = room_for_text(model, tokenizer, settings)
    if not ids:
        raise DataError("the tokenizer makes no token of the prompt; give some text to continue")
    check_ids(model, ids, "the prompt")
    if room is not None and len(ids) + n_tokens > room:
        raise DataError(
            f"a prompt of {len(ids)} tokens and {n_tokens} to write are {len(ids) + n_tokens}, and a thought takes up "
            f"to {branch} more; the model's context is {context_length(model)}: give at most {room} together"
        )
    steady = steady_length(model.config)
    if steady is not None and len(ids) <= steady < len(ids) + n_tokens:
        raise DataError(
            f"a prompt of {len(ids)} tokens and {n_tokens} to write pass the {steady} at which this model's rope "
            "frequencies change, and a trace reads a text with one kind of them: write fewer, or give a longer prompt"
        )
    input_ids = torch.tensor([ids], device=model.device)
    found = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=n_tokens,
        output_thoughts=True,
        n_ahead=settings.n_ahead,
        think=settings.think,
        thought_temperature=settings.thought_temperature,
        thought_top_p=settings.thought_top_p,
        **text_settings(model, tokenizer, temperature, top_p),
    )
    before = range(len(ids) - 1, found.sequences.shape[1] - 1)
    thoughts = {i: found.thoughts[0, t].tokens for t, i in enumerate(before) if found.thoughts[0, t].thought}
    reasons = dict(zip(before, found.thoughts.reason[0], strict=True))
    return TextToTrace(ids=found.sequences[0].tolist(), thoughts=thoughts, reasons=reasons, is_own=True)


def inspect(
    model: QuietStarForCausalLM,
    text: str | list[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    generate: int = 0,
    max_length: int | None = None,
    before: str | Path | PreTrainedModel | None = None,
    **settings: Any,
) -> Trace:
    """Return what a model thinks over texts, and whether its thoughts matter.

    Args:
        model: thinks.
        text: a text or several, each read as it is, or continued.
        tokenizer: of the model.
        generate: tokens to write, greedily, after each text; then only these are thought before.
        max_length: tokens of the windows into which longer texts are cut.
        before: the plain model that this one was trained from, or its folder or hub name: the trace then shows whether
            training has made the text likelier. None takes the base model without its adapters, if it has some.
        settings: fields of TraceSettings: think, thought, interventions, ...

    Returns:
        The trace: a record for each position, and the `summary` of them all. A notebook shows it as the report.

    Raises:
        QuietStarError: an invalid setting, or a text that is empty or too long.
    """
    known = [field.name for field in fields(TraceSettings)]
    for name in settings:
        if name not in known:
            raise SettingsError(f"inspect has no setting {name}{did_you_mean(name, known)}")
    how = TraceSettings(**settings)
    texts = [text] if isinstance(text, str) else list(text)
    if not all(isinstance(text, str) for text in texts):
        raise SettingsError("texts contain something that is not a string; give a text, or a list of them")
    if generate and max_length is not None:
        raise SettingsError("max_length was given with generate, which reads the whole prompt; leave one out")
    if generate < 0 or (max_length is not None and max_length < 2):
        raise SettingsError(
            f"generate is {generate}, max_length {max_length}; give numbers of at least 0 and 2, or leave them out"
        )
    untouched = None if before is None else load_before(before, model, tokenizer)
    found: list[TextToTrace] = []
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(how.seed)
        for text in texts:
            if generate:
                found.append(written(model, tokenizer, text, generate, how))
            else:
                found += windows(model, tokenizer, text, how, max_length=max_length)
    origin = {"generate": generate, "max_length": max_length}
    origin = {name: value for name, value in origin.items() if value}
    return trace(model, tokenizer, found, how, origin=origin, before=untouched)
