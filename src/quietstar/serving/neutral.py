"""Unsupported fields of requests: accepted with a value that has no effect, refused with any other.

Clients often send them with their default value, and null never has an effect. They are OpenAI's fields, and those of
vLLM's that affect sampling.
"""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from quietstar.text.unicode import half_character


def only(*values: Any, otherwise: str = "not supported") -> BeforeValidator:
    """Return a validator that accepts null and these values, of exactly their types; in objects, null is absent."""
    allowed = " or ".join(json.dumps(value) for value in values) or "null"

    def check(value: Any) -> Any:
        given = {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value
        if value is not None and not any(_is_same(given, each) for each in values):
            raise ValueError(f"{otherwise}; give {allowed}, or leave it out")
        return value

    return BeforeValidator(check)


def _is_same(value: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, in which false is not 0."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _text(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise ValueError("give a text, or leave it out")
    return value


def _tags(value: Any) -> Any:
    if value is not None and not (isinstance(value, dict) and all(isinstance(tag, str) for tag in value.values())):
        raise ValueError("give an object whose values are texts, or leave it out")
    if any(half_character(text) is not None for tag in (value or {}).items() for text in tag):
        raise ValueError("a text has a lone surrogate; give valid Unicode")
    return value


NoTools = Annotated[Any, only([])]
RecordedText = Annotated[Any, BeforeValidator(_text)]
"""a text that this server ignores"""
RecordedTags = Annotated[Any, BeforeValidator(_tags)]
"""an object of texts that this server returns at most"""
_PLAIN = {"format": {"type": "text"}}
_POLICY = "not supported, as think controls thinking"


class NeutralWriting(BaseModel):
    """Unsupported fields of completions and chat completions."""

    repetition_penalty: Annotated[Any, only(1)] = None
    min_p: Annotated[Any, only(0)] = None
    top_k: Annotated[Any, only(0, -1)] = None
    """-1 and 0 mean all tokens"""


class NeutralCompletion(NeutralWriting):
    """Unsupported fields of completions."""

    best_of: Annotated[int, Field(ge=1)] | None = None
    """must be equal to n"""
    echo: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None


class NeutralConversation(BaseModel):
    """Unsupported fields of chat completions and responses."""

    moderation: Annotated[Any, only()] = None
    parallel_tool_calls: Annotated[Any, only(True, False)] = None
    prompt_cache_key: RecordedText = None
    prompt_cache_options: Annotated[Any, only({"mode": "implicit"})] = None
    prompt_cache_retention: Annotated[Any, only("in_memory")] = None
    safety_identifier: RecordedText = None
    service_tier: Annotated[Any, only("auto", "default")] = None
    store: Annotated[Any, only(False, otherwise="not supported, as nothing is stored")] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    tools: NoTools = None


class NeutralChat(NeutralWriting, NeutralConversation):
    """Unsupported fields of chat completions."""

    audio: Annotated[Any, only()] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    functions: NoTools = None
    metadata: RecordedTags = None
    modalities: Annotated[Any, only(["text"])] = None
    prediction: Annotated[Any, only()] = None
    reasoning_effort: Annotated[Any, only(otherwise=_POLICY)] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    verbosity: Annotated[Any, only("medium")] = None
    web_search_options: Annotated[Any, only()] = None


class NeutralResponses(NeutralConversation):
    """Unsupported fields of /v1/responses."""

    background: Annotated[Any, only(False)] = None
    context_management: Annotated[Any, only([])] = None
    conversation: Annotated[Any, only(otherwise="not supported, as nothing is stored")] = None
    max_tool_calls: Annotated[Any, only()] = None
    previous_response_id: Annotated[Any, only(otherwise="not supported, as nothing is stored")] = None
    prompt: Annotated[Any, only()] = None
    reasoning: Annotated[Any, only({}, otherwise=_POLICY)] = None
    text: Annotated[Any, only({}, _PLAIN, {"verbosity": "medium"}, _PLAIN | {"verbosity": "medium"})] = None
    truncation: Annotated[Any, only("disabled")] = None


class NeutralMessage(BaseModel):
    """Unsupported fields of a message, which may be an earlier response sent back unchanged."""

    annotations: Annotated[Any, only([])] = None
    audio: Annotated[Any, only()] = None
    function_call: Annotated[Any, only()] = None
    reasoning_content: RecordedText = None
    refusal: Annotated[Any, only()] = None
    tool_call_id: Annotated[Any, only()] = None
    tool_calls: NoTools = None
