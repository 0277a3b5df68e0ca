"""A trace as the report's data: compact, a text of each token once."""

from dataclasses import asdict
from typing import Any

from quietstar.evaluation.report import finite
from quietstar.inspection.interventions import TRUNCATED
from quietstar.inspection.schema import interventions_in
from quietstar.inspection.trace import Trace

SAME = ("thought", "reason", "thought_ids", "thought_logprob", "reward", "gain", "base_entropy")
"""columns that keep their names"""


def payload_of(trace: Trace) -> dict[str, Any]:
    """What the report is made of; see `quietstar.inspection.report`."""
    columns, names = trace.columns, interventions_in(list(trace.columns))
    summary = finite(asdict(trace.summary))
    return {
        "title": f"Thoughts of {trace.model}",
        "model": trace.model,
        "made": trace.made,
        "settings": trace.settings,
        "versions": trace.versions,
        "summary": summary["sentences"],
        "interventions": summary["interventions"],
        "difficulty": summary["difficulty"],
        "tokens": _tokens(columns, names),
        "rows": [_row(columns, names, some) for some in _rows(columns["row"])],
    }


def _rows(rows: list[int]) -> list[slice]:
    """Where each row's records stand."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _tokens(columns: dict[str, list[Any]], names: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    pairs = [("next_id", "next_token"), ("thought_ids", "thought_tokens")]
    pairs += [(f"{of}_top_ids", f"{of}_top_tokens") for of in ("base", "alone", "mixed")]
    pairs += [(f"{of}_top_id", f"{of}_top_token") for of in names]
    pairs += [(f"{of}_thought_ids", f"{of}_thought_tokens") for of in names]
    for ids_name, texts_name in pairs:
        for ids, words in zip(columns[ids_name], columns[texts_name], strict=True):
            if isinstance(ids, list):
                texts |= {str(token): word for token, word in zip(ids, words, strict=True)}
            elif ids is not None:
                texts[str(ids)] = words
    return texts


def _row(columns: dict[str, list[Any]], names: list[str], some: slice) -> dict[str, Any]:
    def top(of: str) -> list[Any]:
        ids, logprob = columns[f"{of}_top_ids"][some], columns[f"{of}_top_logprob"][some]
        return [
            None if i is None else [list(pair) for pair in zip(i, p, strict=True)]
            for i, p in zip(ids, logprob, strict=True)
        ]

    def first(of: str) -> list[Any]:
        return [values[0] if values else None for values in columns[f"{of}_logprob"][some]]

    return {
        "pieces": columns["piece"][some],
        "ids": columns["token_id"][some],
        **{name: columns[name][some] for name in SAME},
        "weight": columns["mixing_weight"][some],
        **{f"{of}_logprob": first(of) for of in ("base", "alone", "mixed")},
        **{f"{of}_top": top(of) for of in ("base", "alone", "mixed")},
        "what_if": {name: _effect(columns, name, some) for name in names},
    }


def _effect(columns: dict[str, list[Any]], name: str, some: slice) -> dict[str, list[Any]]:
    flips, top = columns[f"{name}_flips"][some], columns[f"{name}_top_id"][some]
    found = {
        "delta": columns[f"{name}_delta"][some],
        "kl": columns[f"{name}_kl"][some],
        "flips": [None if was is None else int(was) for was in flips],
        "top": [token if was else None for was, token in zip(flips, top, strict=True)],  # else it is the model's own
    }
    if not name.startswith(f"{TRUNCATED}_"):  # the beginning of the thought need not be told twice
        found["thought_ids"] = columns[f"{name}_thought_ids"][some]
    return found
