"""Texts to trace: windows of a long one, or what a model writes after a prompt, with the thoughts that it had."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError, SettingsError
from quietstar.inspection.observe import trace
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from quietstar.loading import context_length, prompt_ids
from quietstar.model import QuietStarForCausalLM

MAX_LENGTH = 2048
"""tokens of a window, unless the model's context is shorter"""


def windows(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    max_length: int | None = None,
    limit: int | None = None,
) -> list[TextToTrace]:
    """A text, cut into windows that the model can think over to their ends.

    Args:
        model: says how long a window may be.
        tokenizer: of the model.
        text: at least one token.
        max_length: tokens of a window at most.
        limit: tokens of the text at most.

    Raises:
        DataError: the text has no token, or a window would be longer than the model's context leaves room for.
    """
    ids = list(tokenizer(text, verbose=False)["input_ids"])[:limit]
    if not ids:
        raise DataError("the tokenizer makes no token of the text; give some text to read")
    room = longest(model)
    if max_length is not None and room is not None and max_length > room:
        raise DataError(
            f"max_length is {max_length}, and a thought takes up to {_branch(model)} tokens more; the model's context "
            f"is {context_length(model)}: give at most {room}"
        )
    size = max_length or min(MAX_LENGTH, room or MAX_LENGTH)
    return [TextToTrace(ids=ids[first : first + size]) for first in range(0, len(ids), size)]


def longest(model: QuietStarForCausalLM) -> int | None:
    """Tokens of a text that leave room for a thought at its end; None where the config gives no context length."""
    context = context_length(model)
    return None if context is None else max(1, context - _branch(model))


def _branch(model: QuietStarForCausalLM) -> int:
    return model.config.n_ahead + model.config.n_ahead_talk - 1


def written(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, n_tokens: int, **how: Any
) -> TextToTrace:
    """What the model writes after a prompt, with the thoughts that it had before each token.

    Args:
        model: writes.
        tokenizer: of the model.
        prompt: at least one token.
        n_tokens: tokens to write at most.
        how: as `generate` takes it: think, do_sample, thought_temperature, ...

    Raises:
        DataError: the prompt has no token, or leaves no room for so many more.
    """
    ids = prompt_ids(tokenizer, prompt)
    room = longest(model)
    if not ids:
        raise DataError("the tokenizer makes no token of the prompt; give some text to go on from")
    if room is not None and len(ids) + n_tokens > room:
        raise DataError(
            f"a prompt of {len(ids)} tokens and {n_tokens} to write are {len(ids) + n_tokens}, and a thought takes up "
            f"to {_branch(model)} more; the model's context is {context_length(model)}: give at most {room} together"
        )
    input_ids = torch.tensor([ids], device=model.device)
    found = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=n_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        output_thoughts=True,
        **how,
    )
    before = range(len(ids) - 1, found.sequences.shape[1] - 1)
    thoughts = {i: found.thoughts[0, t].tokens for t, i in enumerate(before) if found.thoughts[0, t].thought}
    reasons = dict(zip(before, found.thoughts.reason[0], strict=True))
    return TextToTrace(ids=found.sequences[0].tolist(), thoughts=thoughts, reasons=reasons)


def inspect_texts(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: str | list[str],
    *,
    generate: int = 0,
    max_length: int | None = None,
    **settings: Any,
) -> Trace:
    """See QuietStarForCausalLM.inspect."""
    how = TraceSettings(**settings)
    if generate < 0 or (max_length is not None and max_length < 2):
        raise SettingsError(
            f"generate is {generate}, max_length {max_length}; give numbers of at least 0 and 2, or leave them out"
        )
    found: list[TextToTrace] = []
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(how.seed)
        for text in [texts] if isinstance(texts, str) else texts:
            if generate:
                drawing = {"thought_temperature": how.thought_temperature, "thought_top_p": how.thought_top_p}
                found.append(written(model, tokenizer, text, generate, think=how.think, do_sample=False, **drawing))
            else:
                found += windows(model, tokenizer, text, max_length=max_length)
    return trace(model, tokenizer, found, how)
