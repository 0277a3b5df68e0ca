"""What is wrong with a request's body, in one line."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from quietstar.errors import did_you_mean
from quietstar.serving.faults import RequestError

_SHOWN = 60
"""characters of a value to show in an error"""


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
    allowed = f"; allowed are {', '.join(fields)}" if fields else ""
    return f"unknown field {name}{did_you_mean(name, fields) or allowed}"


def _shown(value: Any) -> str:
    """Return a value as text, shortened to fit into a line."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
