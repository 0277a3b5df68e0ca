"""A trace as compact data for the report, with the text of each token and each thought stored once."""

from dataclasses import asdict
from typing import Any

from quietstar.inspection.interventions import is_truncated
from quietstar.inspection.schema import PREDICTIONS, interventions_in
from quietstar.inspection.trace import Trace
from quietstar.reporting.tables import finite

SAME = ("thought", "reason", "reward", "gain", "before_logprob", "base_entropy")
"""columns that keep their names"""
LIKELIEST = 10
"""most tokens shown of each prediction"""
CUTS = 8
"""most lengths of truncated thoughts shown at each position"""


def payload_of(trace: Trace) -> dict[str, Any]:
    """Return the data of the report; see `quietstar.inspection.report`."""
    columns = trace.columns
    names = shown(interventions_in(list(columns)))
    summary = finite(asdict(trace.summary))
    pool = _Pool()
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
        "rows": [_row(columns, names, some, pool) for some in _rows(columns["row"])],
        "thoughts": pool.thoughts,
    }


def shown(names: list[str]) -> list[str]:
    """Return the interventions to show at each position: all, but at most CUTS evenly spaced truncations."""
    cuts = [name for name in names if is_truncated(name)]
    if len(cuts) <= CUTS:
        return names
    kept = {cuts[round(index * (len(cuts) - 1) / (CUTS - 1))] for index in range(CUTS)}
    return [name for name in names if name in kept or name not in cuts]


class _Pool:
    """Distinct thoughts, each stored once."""

    def __init__(self) -> None:
        self.thoughts: list[list[int]] = []
        self._places: dict[tuple[int, ...], int] = {}

    def places(self, thoughts: list[list[int] | None]) -> list[int | None]:
        """Return the index of each thought in the pool, adding new ones."""
        return [None if thought is None else self._place(thought) for thought in thoughts]

    def _place(self, thought: list[int]) -> int:
        place = self._places.setdefault(tuple(thought), len(self.thoughts))
        if place == len(self.thoughts):
            self.thoughts.append(thought)
        return place


def _rows(rows: list[int]) -> list[slice]:
    """Return the slice of records of each row."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)]


def _tokens(columns: dict[str, list[Any]], names: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    pairs = [("next_id", "next_token"), ("thought_ids", "thought_tokens")]
    pairs += [(f"{kind}_top_ids", f"{kind}_top_tokens") for kind in PREDICTIONS]
    pairs += [(f"{name}_top_id", f"{name}_top_token") for name in names]
    pairs += [(f"{name}_thought_ids", f"{name}_thought_tokens") for name in names]
    for ids_name, texts_name in pairs:
        most = LIKELIEST if ids_name.endswith("_top_ids") else None
        for ids, tokens in zip(columns[ids_name], columns[texts_name], strict=True):
            if isinstance(ids, list):
                texts |= {str(id): token for id, token in zip(ids[:most], tokens[:most], strict=True)}
            elif ids is not None:
                texts[str(ids)] = tokens
    return texts


def _row(columns: dict[str, list[Any]], names: list[str], some: slice, pool: _Pool) -> dict[str, Any]:
    def top(kind: str) -> list[Any]:
        pairs = zip(columns[f"{kind}_top_ids"][some], columns[f"{kind}_top_logprob"][some], strict=True)
        return [None if ids is None else _likeliest(ids, logprob) for ids, logprob in pairs]

    def first(kind: str) -> list[Any]:
        return [values[0] if values else None for values in columns[f"{kind}_logprob"][some]]

    return {
        "pieces": columns["piece"][some],
        "ids": columns["token_id"][some],
        **{name: columns[name][some] for name in SAME},
        "thought_ids": pool.places(columns["thought_ids"][some]),
        "thought_logprob": [values and list(map(_percentage, values)) for values in columns["thought_logprob"][some]],
        "weight": columns["mixing_weight"][some],
        **{f"{kind}_logprob": first(kind) for kind in PREDICTIONS},
        **{f"{kind}_top": top(kind) for kind in PREDICTIONS},
        "what_if": {name: _effect(columns, name, some, pool) for name in names},
    }


def _effect(columns: dict[str, list[Any]], name: str, some: slice, pool: _Pool) -> dict[str, list[Any]]:
    flips, top = columns[f"{name}_flips"][some], columns[f"{name}_top_id"][some]
    found: dict[str, list[Any]] = {
        "delta": list(map(_effect_size, columns[f"{name}_delta"][some])),
        "kl": list(map(_effect_size, columns[f"{name}_kl"][some])),
        "flips": [None if was is None else int(was) for was in flips],
        "top": [token if was else None for was, token in zip(flips, top, strict=True)],  # otherwise the model's own
    }
    if not is_truncated(name):  # the report has the whole thought already
        found["thought_ids"] = pool.places(columns[f"{name}_thought_ids"][some])
    return found


def _likeliest(ids: list[int], logprob: list[float | None]) -> list[list[Any]]:
    pairs = zip(ids[:LIKELIEST], logprob[:LIKELIEST], strict=True)
    return [[token, _percentage(value)] for token, value in pairs]


def _percentage(logprob: float | None) -> float | None:
    """Round to the digits that affect the percentage shown."""
    return None if logprob is None else round(logprob, 4)


def _effect_size(value: float | None) -> float | None:
    """Round to three decimals, or to two significant digits below 0.001."""
    return None if value is None else round(value, 3) if abs(value) >= 0.001 else float(f"{value:.1e}")
