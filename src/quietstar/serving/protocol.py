"""Fields of requests. Unknown fields and wrong types are refused with an error of one line."""

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from quietstar.policy import ThinkPolicy
from quietstar.serving.faults import RequestError
from quietstar.serving.neutral import Neutral, NeutralChat, NeutralCompletion, NeutralMessage, only
from quietstar.text.unicode import half_character

MOST_STOPS = 4
LONGEST_STOP = 500
"""characters"""
LONGEST_POLICY = 200
"""characters"""
LONGEST_THOUGHT = 64
"""tokens of a thought in a request"""
_SHOWN = 60
"""characters of a value to show in an error"""


def _check_prompt(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    if isinstance(value, list) and len(value) > 1 and all(isinstance(each, str | list) for each in value):
        raise ValueError("give one prompt per request")
    raise ValueError("give a text, or a list of token ids")


def _check_stop(value: Any) -> Any:
    if value is None or value == "":
        return ()
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops)
    ):
        raise ValueError(f"give up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters")
    return tuple(_text(stop) for stop in stops)


def _check_policy(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_POLICY:
        raise ValueError(f"give a policy such as 'entropy:2.5', of up to {LONGEST_POLICY} characters")
    return ThinkPolicy.parse(_text(value))


def _check_content(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and value:
        parts = [part for part in value if isinstance(part, dict) and set(part) == {"type", "text"}]
        if len(parts) == len(value) and all(p["type"] == "text" and isinstance(p["text"], str) for p in parts):
            return _text("".join(part["text"] for part in parts))
    raise ValueError('give a text, or a list of {"type": "text", "text": ...}')


def _text(value: str) -> str:
    """Return the text if it can be encoded in UTF-8."""
    if half_character(value) is not None:
        raise ValueError("the text has a lone surrogate; give valid Unicode")
    return value


def _ids(value: Any) -> Any:
    if value is not None and not (isinstance(value, list) and all(type(token) is int for token in value)):
        raise ValueError("give a list of token ids")
    return value


def _schema(**schema: Any) -> WithJsonSchema:
    return WithJsonSchema(schema)


_TEXT, _IDS = {"type": "string"}, {"type": "array", "items": {"type": "integer"}}
Prompt = Annotated[Any, BeforeValidator(_check_prompt), _schema(anyOf=[_TEXT, _IDS])]
"""text, or token ids"""
Stop = Annotated[Any, BeforeValidator(_check_stop), _schema(anyOf=[_TEXT, {"type": "array", "items": _TEXT}])]
"""tuple of strings"""
Policy = Annotated[Any, BeforeValidator(_check_policy), _schema(**_TEXT)]
"""ThinkPolicy, or None for the server's"""
Content = Annotated[Any, BeforeValidator(_check_content), _schema(anyOf=[_TEXT, {"type": "array"}])]
"""text"""
Ids = Annotated[Any, BeforeValidator(_ids), _schema(**_IDS)]
"""list of token ids, or None"""
Text = Annotated[str, BeforeValidator(lambda value: _text(value) if isinstance(value, str) else value)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[Number, Field(ge=0, le=2)]
Share = Annotated[Number, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class _Request(BaseModel):
    """Accepts exactly its fields, of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    """Options of `stream`."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False)] = None


class Writing(_Request, Neutral):
    """Fields that completions and chat completions share. Null is the same as leaving a field out."""

    model: Text | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: Count | None = None
    stop: Stop = ()
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None

    think: Policy = None
    n_ahead: Annotated[int, Field(ge=2, lt=2**31)] | None = None
    thought_temperature: Temperature | None = None
    thought_top_p: Share | None = None
    include_reasoning: bool | None = None
    thoughts: bool | None = None

    default_tokens: ClassVar[int | None]
    """limit of generated tokens if the request has none; None for as many as the context allows"""

    @model_validator(mode="after")
    def _fits_together(self) -> "Writing":
        if self.wants_usage and not self.stream:
            raise ValueError("stream_options needs stream; leave it out, or set stream to true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def requested_tokens(self) -> tuple[int | None, str]:
        """The limit of generated tokens, or None, and its field."""
        return self.max_tokens, "max_tokens"


class CompletionRequest(Writing, NeutralCompletion):
    """POST /v1/completions."""

    default_tokens: ClassVar[int | None] = 16
    prompt: Prompt

    @model_validator(mode="after")
    def _best_of_itself(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of is {self.best_of}, but only n is supported; leave it out")
        return self


class Message(_Request, NeutralMessage):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: Text | None = None

    @property
    def for_template(self) -> dict[str, str]:
        """The message for a chat template, without the thoughts of earlier responses."""
        return self.model_dump(include={"role", "content", "name"}, exclude_none=True)


class ChatRequest(Writing, NeutralChat):
    """POST /v1/chat/completions."""

    default_tokens: ClassVar[int | None] = None
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None

    @property
    def requested_tokens(self) -> tuple[int | None, str]:
        """The smaller of the two limits, and its field."""
        both = {"max_completion_tokens": self.max_completion_tokens, "max_tokens": self.max_tokens}
        given = [(n, name) for name, n in both.items() if n is not None]
        return min(given, default=(None, "max_tokens"))


class ThoughtRequest(_Request):
    """POST /v1/thoughts: a text, and a thought after its last token."""

    model: Text | None = None
    prompt: Text | None = None
    token_ids: Ids = None
    thought: Text | None = None
    thought_ids: Ids = None
    top_k: Annotated[int, Field(ge=1, le=50)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ThoughtRequest":
        if (self.prompt is None) == (self.token_ids is None):
            raise ValueError("give either prompt or token_ids")
        if self.thought is not None and self.thought_ids is not None:
            raise ValueError(
                "thought and thought_ids were both given; give one, or neither for the model's own thought"
            )
        return self


def supported(request: type[BaseModel]) -> list[str]:
    """Return the supported fields of a request."""
    kinds = [kind for kind in (NeutralCompletion, NeutralChat) if issubclass(request, kind)]
    return [name for name in request.model_fields if not any(name in kind.model_fields for kind in kinds)]


class Problem(BaseModel):
    """Details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class Fault(BaseModel):
    """Body of an error response."""

    error: Problem


def check_json(body: bytes) -> None:
    """Raise RequestError if a body is not JSON in UTF-8, or has a duplicate field."""
    try:
        json.loads(body.decode(), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise RequestError(400, f"byte {error.start + 1} of the body is not UTF-8; send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise RequestError(400, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply; send fewer levels of lists and objects") from None
    except ValueError:  # Python's limit of a few thousand digits
        raise RequestError(400, "the body has a number of too many digits; send a shorter one") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RequestError(422, f"{_shown(name)} is given twice; give it once", param=name[:_SHOWN])
        found[name] = value
    return found


def first_problem(errors: Sequence[Any], fields: Sequence[str] = ()) -> tuple[str, str | None]:
    """Return a message of one line about the first of pydantic's errors, and the field that it concerns.

    `fields` are those that the request may have.
    """
    error = errors[0]
    name = ".".join(str(part) for part in error["loc"] if part != "body") or None
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return _unknown(str(error["loc"][-1]), fields if len(error["loc"]) == 2 else ()), name
    if kind == "missing":
        return f"{name or 'a JSON body'} is missing; give it", name
    if kind == "string_unicode":
        return f"{name or 'a field'} has a lone surrogate; give valid Unicode", name
    if name is None:
        return (message if kind == "value_error" else "the body is not a JSON object; give one"), None
    if kind != "value_error":
        message = message[:1].lower() + message[1:]
    return f"{name} is {_shown(error['input'])}: {message}", name


def _unknown(name: str, fields: Sequence[str]) -> str:
    name = name[:_SHOWN]
    near = difflib.get_close_matches(name, fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; allowed are {', '.join(fields)}" if fields else ""
    return f"unknown field {name}{hint}"


def _shown(value: Any) -> str:
    """Return a value as text, shortened to fit into a line."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
