"""The page says what its command prints."""

import re
from functools import cache
from pathlib import Path

import pytest
from scaling_tables import tables

from quietstar.scaling.shape import shape_of

PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()


def test_every_table_stands_on_the_page():
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    for table in tables():
        assert table in PAGE, f"docs/scaling_tables.py prints another table:\n{table}"


def test_every_case_of_the_benchmark_stands_on_the_page(monkeypatch):
    """With what the formulas say of it today, within 15 % of what was measured."""
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import memory

    @cache
    def counted(family, lora_r):
        return shape_of(memory.base_config(family), lora=memory.Case(family, lora_r=lora_r).lora)

    for name, case in memory.CASES.items():
        monkeypatch.setattr(memory, "shape_of", lambda *_, case=case, **__: counted(case.family, case.lora_r))
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
        measured, tensors, computed = (float(of.replace(",", "")) for of in re.findall(r"([\d,]+) MB", row))
        found = {"resident": 1e6 * measured, "tensors": 1e6 * tensors, "computed": memory.computed(case).total}
        assert f"| {computed:,.0f} MB |" in memory.line(name, case, found), name
        assert row.startswith(memory.line(name, case, found).partition(" MB")[0]), name
        assert computed == pytest.approx(measured, rel=0.15), name
