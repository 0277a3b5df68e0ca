"""A thought counts as found where intervals say so, and the table has every run."""

import io

import pytest
from rich.console import Console

from quietstar.demo.discover.report import LABELS, Findings, markdown_table, rows, sentences, table
from quietstar.reporting.interval import Share


def line(step: int, own: int, base_pass: int, scratch: int, n: int = 240) -> dict:
    names = ("own_thoughts", "base_pass", "scratch_letters")
    return {"step": step} | {
        name: Share(right, n).to_dict() for name, right in zip(names, (own, base_pass, scratch), strict=True)
    }


def findings(*ends: tuple[int, int, int]) -> Findings:
    """One arm, a seed for each end: right with thoughts, right without, scratch letters, of 240."""
    return Findings(
        base={
            seed: {"no_thoughts": Share(20, 240).to_dict(), "spelled_out": Share(239, 240).to_dict()}
            for seed in range(len(ends))
        },
        curves={"positive": {seed: [line(0, 20, 20, 15), line(9, *end)] for seed, end in enumerate(ends)}},
    )


@pytest.mark.parametrize(
    ("end", "is_found"),
    [
        ((120, 20, 150), True),
        ((25, 20, 150), False),  # The answers are no better than without thoughts.
        ((120, 110, 150), False),  # They are as good without.
        ((120, 20, 22), False),  # Some other thought is of use.
        ((20, 20, 15), False),
    ],
)
def test_found_is_what_intervals_leave_no_doubt_of(end: tuple[int, int, int], is_found: bool) -> None:
    assert findings(end).seeds_found("positive") == [0] * is_found


def test_sentences_count_the_runs() -> None:
    told = sentences(findings((120, 20, 150), (20, 20, 15)))
    assert told[1] == f"[bold]{LABELS['positive']}: the thought was found in 1 of 2 runs (seed 0).[/]"
    assert "found in 0 of 1 runs." in sentences(findings((20, 20, 15)))[1]


def test_tables_have_each_seed_of_base_and_arm() -> None:
    found = findings((120, 24, 150), (20, 20, 15))
    wanted = ("positive", "0", "50.0 %", "43.7 - 56.3 %", "10.0 %", "62.5 %")
    assert len(rows(found)) == 6
    assert wanted in rows(found)
    assert len(markdown_table(found).splitlines()) == 2 + 6
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(found))
    shown = console.export_text()
    assert all(cell in shown for cell in wanted)
