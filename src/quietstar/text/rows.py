"""Rows of untrusted datasets: the files and URLs that they name are not opened."""

import dataclasses
from typing import Any


def as_stored(rows: Any) -> Any:
    """Return the rows with images and audio left undecoded: decoding one opens the file or URL that it names."""
    stored = _not_decoded(dict(rows.features or {}))
    return rows if stored == (rows.features or {}) else rows.cast(type(rows.features)(stored))


def _not_decoded(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _not_decoded(each) for name, each in feature.items()}
    if isinstance(feature, list):
        return [_not_decoded(each) for each in feature]
    if hasattr(feature, "feature"):
        return dataclasses.replace(feature, feature=_not_decoded(feature.feature))
    # Json has the same switch, but it decodes values in the row itself
    opens = getattr(feature, "decode", False) is True and type(feature).__name__ != "Json"
    return dataclasses.replace(feature, decode=False) if opens else feature
