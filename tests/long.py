"""The long tail of a table of cases, which waits for `make test-all`: `mostly_long`."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet


def mostly_long(cases: Iterable[Any], kept: Collection[Any] | Callable[[Any], bool]) -> list[ParameterSet]:
    """Return the cases for `parametrize`, all but the kept ones marked `long`."""
    is_kept = kept if callable(kept) else kept.__contains__
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=() if is_kept(case) else pytest.mark.long)
        for case in cases
    ]
