"""Types of values in requests, each with a check whose message says what to give."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from quietstar.policy import ThinkPolicy
from quietstar.text.unicode import half_character

ROLES = ("system", "developer", "user", "assistant")
MOST_STOPS = 4
LONGEST_STOP = 500
"""characters"""
LONGEST_POLICY = 200
"""characters"""
LONGEST_THOUGHT = 64
"""tokens of a thought in a request"""
MOST_BIASES = 300
"""tokens whose logits a request may change"""
LARGEST_BIAS = 100.0
MOST_LOGPROBS = 20
"""likeliest tokens whose log-probabilities a request may ask for"""
LARGEST_PENALTY = 2.0


def _check_prompts(value: Any) -> Any:
    are_several = isinstance(value, list) and value and all(isinstance(each, str | list) for each in value)
    return [_check_prompt(each) for each in (value if are_several else [value])]


def _check_prompt(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    raise ValueError("give a text, a list of token ids, or a list of texts or of such lists")


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


def _check_biases(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise ValueError(f"give an object of up to {MOST_BIASES} token ids, each with a number")
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal()):
            raise ValueError(f"{token[:20]!r} is not a token id; give an object of token ids, each with a number")
        if type(bias) not in (int, float) or not abs(bias) <= LARGEST_BIAS:
            raise ValueError(f"give token {token[:20]} a number from {-LARGEST_BIAS:g} to {LARGEST_BIAS:g}")
    biases = {int(token[:20]): float(bias) for token, bias in value.items()}
    if len(biases) < len(value):
        raise ValueError("a token id is given twice; give it once")
    return biases


def _check_input(value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": _text(value)}]
    if not isinstance(value, list) or not value:
        raise ValueError("give a text, or a list of messages")
    messages = [_check_item(item) for item in value]
    if not any(messages):
        raise ValueError("there is no message; give one")
    return [message for message in messages if message is not None]


def _check_item(item: Any) -> dict[str, str] | None:
    """Return a message; None for an earlier response's thoughts, which a model does not read."""
    kind = (item.get("type") or "message") if isinstance(item, dict) else None
    if kind == "reasoning":
        return None
    if kind != "message":
        raise ValueError("give a text, or a list of messages; other items are not supported")
    if unknown := set(item) - {"type", "role", "content", "id", "status", "phase"}:
        raise ValueError(f"a message has the unknown field {min(unknown)[:40]!r}; give role and content")
    if item.get("role") not in ROLES:
        raise ValueError(f"give each message a role: {', '.join(ROLES)}")
    content = item.get("content")
    if isinstance(content, list) and content:
        parts = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(parts) == len(content) and all(part.get("type") in ("input_text", "output_text") for part in parts):
            content = "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise ValueError('give each message content: a text, or a list of {"type": "input_text", "text": ...}')
    return {"role": item["role"], "content": _text(content)}


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
_LIST_OF_EITHER = {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}}
Prompts = Annotated[Any, BeforeValidator(_check_prompts), _schema(anyOf=[_TEXT, _IDS, _LIST_OF_EITHER])]
"""list of prompts, each a text or token ids"""
Input = Annotated[Any, BeforeValidator(_check_input), _schema(anyOf=[_TEXT, {"type": "array"}])]
"""list of messages, of which each has role and content"""
Biases = Annotated[Any, BeforeValidator(_check_biases), _schema(type="object")]
"""token id -> number"""
Penalty = Annotated[float, Field(ge=-LARGEST_PENALTY, le=LARGEST_PENALTY, allow_inf_nan=False)]
Logprobs = Annotated[int, Field(ge=0, le=MOST_LOGPROBS)]
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
