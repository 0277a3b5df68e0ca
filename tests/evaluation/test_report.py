"""What the table of an evaluation says of a figure."""

import pytest

from quietstar.evaluation.report import CAVEAT, Figure, caveat, rows_of
from quietstar.reporting.interval import Estimate

NLL = "nll, nats a token"


@pytest.mark.parametrize(
    ("figure", "cells"),
    [
        (
            Figure(task="a.txt", measure=NLL, mode="base", estimate=Estimate(3.0, 2.5, 3.5, 9)),
            (
                "a.txt",
                f"{NLL} (less is better)",
                "without thoughts",
                "9",
                "3.0000 (perplexity 20.09)",
                "2.5000 - 3.5000",
            ),
        ),
        (
            Figure(
                task="a.txt",
                measure=NLL,
                mode="thinking",
                estimate=Estimate(3.0, 3.0, 3.0, 1),
                difference=Estimate(-0.5, -0.5, -0.5, 1),
            ),
            ("a.txt", f"{NLL} (less is better)", "with thoughts", "1", "3.0000 (perplexity 20.09)", "-0.5000"),
        ),
        (
            Figure(task="gsm8k", measure="exact_match", mode="original", estimate=Estimate(0.5, 0.25, 0.75, 8)),
            ("gsm8k", "exact_match", "plain model", "8", "50.00 %", "25.00 - 75.00 %"),
        ),
    ],
    ids=["an interval", "none of a single item", "a share"],
)
def test_a_figure_is_a_row(figure: Figure, cells: tuple[str, ...]) -> None:
    _, (row,) = rows_of([figure])
    assert row == cells


def test_a_gain_of_thoughts_has_its_caveat() -> None:
    plain, thinking = (
        Figure(task="a.txt", measure=NLL, mode=mode, estimate=Estimate(3.0, 2.5, 3.5, 9))
        for mode in ("base", "thinking")
    )
    assert caveat([plain, thinking]) == CAVEAT
    assert caveat([plain]) == ""
