"""Rows of datasets, which may come from anywhere: what they name is not opened."""

import dataclasses
from typing import Any


def as_stored(rows: Any) -> Any:
    """Rows whose images and sounds are left as the file has them: reading one opens the file or URL that it names.

    Args:
        rows: a dataset or a stream of the datasets library.
    """
    stored = _not_decoded(dict(rows.features or {}))
    return rows if stored == (rows.features or {}) else rows.cast(type(rows.features)(stored))


def _not_decoded(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _not_decoded(each) for name, each in feature.items()}
    if isinstance(feature, list):
        return [_not_decoded(each) for each in feature]
    if hasattr(feature, "feature"):
        return dataclasses.replace(feature, feature=_not_decoded(feature.feature))
    opens = getattr(feature, "decode", False) is True and type(feature).__name__ != "Json"  # whose values are at hand
    return dataclasses.replace(feature, decode=False) if opens else feature
