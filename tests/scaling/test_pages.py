"""The page says what its command prints."""

from pathlib import Path

import pytest

from quietstar.scaling.pages import tables

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


def test_every_table_stands_on_the_page():
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    for table in tables():
        assert table in PAGE, f"python -m quietstar.scaling prints another table:\n{table}"


def test_every_case_of_the_benchmark_stands_on_the_page(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import memory

    for name, case in memory.CASES.items():
        assert PAGE.count(f"\n| {name} | {case.batch} x {case.length}, ") == 1, name
