"""The columns of a trace, which has a record for each position of a text.

A position is the index of a token; a thought at a position comes after that token and before the next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quietstar.errors import DataError
from quietstar.text.unicode import half_character


@dataclass(frozen=True, slots=True)
class Column:
    """The type and meaning of a column."""

    type: str
    """int, float, bool or text; `ints`, `floats` and `texts` are lists"""
    meaning: str
    optional: bool = True
    """whether the value may be null"""


PREDICTIONS = ("base", "alone", "mixed")
"""the predictions recorded at each position: without the thought, by the thought alone, and mixed"""

COLUMNS: dict[str, Column] = {
    "row": Column("int", "index of the text, or of the window of a long one, from 0", optional=False),
    "position": Column("int", "index of the token in it, from 0", optional=False),
    "token_id": Column("int", "the token", optional=False),
    "piece": Column(
        "text",
        "text that the token adds; empty inside a multi-token character; a row's pieces joined are its text",
        optional=False,
    ),
    "next_id": Column("int", "the true next token; null at the end"),
    "next_token": Column("text", "its text"),
    "thought": Column("bool", "whether the model thought after it", optional=False),
    "reason": Column("text", "why it did or did not; empty where there was no decision", optional=False),
    "thought_ids": Column("ints", "the K thought tokens"),
    "thought_tokens": Column("texts", "their texts"),
    "thought_text": Column("text", "the thought as text"),
    "thought_logprob": Column(
        "floats", "log-probability of each thought token in the vocabulary at temperature 1, in nats"
    ),
    "mixing_weight": Column("float", "how much the thought counts in the prediction of the next token"),
    "reward": Column(
        "float",
        "nats by which the thought made the next M true tokens likelier, as in training before any length_price; null "
        "if fewer follow",
    ),
    "gain": Column("float", "the same for the next token alone: mixed_logprob[0] - base_logprob[0]"),
    "base_logprob": Column(
        "floats",
        "log-probability of the next M true tokens, or of as many as follow, without the thought; null without a label",
        optional=False,
    ),
    "alone_logprob": Column("floats", "by the thought alone"),
    "mixed_logprob": Column("floats", "with the thought mixed in, as the model predicts"),
    "before_logprob": Column(
        "float", "log-probability of the next token by the model before training; null if unknown"
    ),
    "base_entropy": Column("float", "of the next token's prediction without the thought, in nats", optional=False),
    "base_top_ids": Column("ints", "likeliest next tokens without the thought, likeliest first", optional=False),
    "base_top_tokens": Column("texts", "their texts", optional=False),
    "base_top_logprob": Column("floats", "their log-probabilities", optional=False),
    "alone_top_ids": Column("ints", "likeliest next tokens by the thought alone"),
    "alone_top_tokens": Column("texts", "their texts"),
    "alone_top_logprob": Column("floats", "their log-probabilities"),
    "mixed_top_ids": Column(
        "ints",
        "likeliest next tokens with the thought mixed in, suppressed ones included (`generate` never emits them)",
    ),
    "mixed_top_tokens": Column("texts", "their texts"),
    "mixed_top_logprob": Column("floats", "their log-probabilities"),
}
"""columns of every trace"""

EFFECTS: dict[str, Column] = {
    "delta": Column("float", "log-probability of the true next token with the replacement minus with the thought"),
    "kl": Column("float", "KL(prediction with the thought || prediction with the replacement), in nats"),
    "flips": Column("bool", "whether the likeliest next token changes"),
    "top_id": Column("int", "the likeliest next token with the replacement"),
    "top_token": Column("text", "its text"),
    "thought_ids": Column("ints", "the replacement of the thought; null if there is none"),
    "thought_tokens": Column("texts", "their texts"),
}
"""columns of each intervention, prefixed by its name: removed_delta, removed_kl, ..."""


def schema_of(interventions: list[str]) -> dict[str, Column]:
    """Return all columns of a trace with these interventions."""
    more = {f"{name}_{effect}": column for name in interventions for effect, column in EFFECTS.items()}
    return COLUMNS | more


def interventions_in(names: list[str]) -> list[str]:
    """Return the interventions of a trace with columns of these names, in their order."""
    return [name.removesuffix("_delta") for name in names if name.endswith("_delta")]


LARGEST = 1e30
"""numbers beyond this are rejected"""
_ONE = {"int": int, "float": (int, float), "bool": bool, "text": str}


def check(columns: dict[str, list[Any]], source: str) -> None:
    """Raise DataError if columns from a file are not a valid trace."""
    names = interventions_in(list(columns))
    schema = schema_of(names)
    if missing := [name for name in schema if name not in columns]:
        raise DataError(f"{source} is not a trace: it lacks {_listed(missing)}; give a file of quietstar inspect")
    if unknown := [name for name in columns if name not in schema]:
        raise DataError(f"{source} is not a trace: it has {_listed(unknown)}; give a file of quietstar inspect")
    for name, column in schema.items():
        for index, value in enumerate(columns[name]):
            if not _fits(value, column):
                raise DataError(
                    f"{source} is not a trace: {_listed([name])} of record {index + 1} is {ascii(value)[:40]}; "
                    f"it should be {column.type}{' or null' if column.optional else ''}"
                )
    for together in _partners(names):
        for index, values in enumerate(zip(*(columns[name] for name in together), strict=True)):
            if len({_length(value) for value in values}) > 1:
                raise DataError(
                    f"{source} is not a trace: in record {index + 1}, {_listed(together)} differ in length; "
                    "they should be equally long"
                )
    parts = (columns[name] for name in ("gain", "base_logprob", "thought", "thought_ids"))
    for index, (gain, base, thought, ids) in enumerate(zip(*parts, strict=True)):
        if gain is not None and (not thought or not base or base[0] is None):
            raise DataError(f"{source} is not a trace: record {index + 1} has a gain but no thought or base_logprob")
        if thought is (ids is None):
            raise DataError(f"{source} is not a trace: in record {index + 1}, thought and thought_ids disagree")


def _listed(names: Sequence[str]) -> str:
    """Return the first names on one line, safe to print whatever the file's column names are."""
    return ", ".join(ascii(name)[1:-1][:80] for name in names[:3])


def _partners(interventions: list[str]) -> list[tuple[str, ...]]:
    """Return groups of columns that are null together, or equally long."""
    found: list[tuple[str, ...]] = [("next_id", "next_token"), ("thought_ids", "thought_tokens", "thought_logprob")]
    found += [tuple(f"{kind}_top_{part}" for part in ("ids", "tokens", "logprob")) for kind in PREDICTIONS]
    found += [(f"{name}_top_id", f"{name}_top_token") for name in interventions]
    return found + [(f"{name}_thought_ids", f"{name}_thought_tokens") for name in interventions]


def _length(value: Any) -> int | None:
    """Return the length of a list, -1 for a single value, None for null."""
    return len(value) if isinstance(value, list) else None if value is None else -1


def _fits(value: Any, column: Column) -> bool:
    if value is None:
        return column.optional
    kind = column.type.removesuffix("s") if column.type in ("ints", "floats", "texts") else column.type
    if column.type != kind:
        # NaN is stored as null
        return isinstance(value, list) and all((each is None and kind == "float") or _is(each, kind) for each in value)
    return _is(value, kind)


def _is(value: Any, kind: str) -> bool:
    if not isinstance(value, _ONE[kind]) or (kind != "bool" and isinstance(value, bool)):  # type: ignore[arg-type]
        return False
    if kind == "int":
        return abs(value) < 2**63
    if kind == "text":
        return half_character(value) is None
    return kind != "float" or abs(value) < LARGEST  # NaN compares false
