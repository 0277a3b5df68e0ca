"""A package that is not there is asked for by the extra that installs it."""

import sys

import pytest

from quietstar.errors import MissingExtraError, need


@pytest.mark.parametrize("absent", ["pyarrow", "pyarrow.parquet"])
def test_the_extra_is_named(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert need("pyarrow.parquet", "inspect", "traces as Parquet").__name__ == "pyarrow"
    monkeypatch.setitem(sys.modules, absent, None)
    said = r"pyarrow is not installed and is needed for traces as Parquet: pip install 'quietstar\[inspect\]'"
    with pytest.raises(MissingExtraError, match=said):
        need("pyarrow.parquet", "inspect", "traces as Parquet")
