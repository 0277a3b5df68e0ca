"""The summary of a trace as a table on the screen and as Markdown."""

from collections.abc import Callable
from itertools import groupby
from math import isfinite, isinf

from rich.table import Table

from quietstar.inspection.details import nats, plain
from quietstar.inspection.findings import FEWEST, Difficulty, Effects, Summary
from quietstar.reporting.interval import Estimate
from quietstar.reporting.tables import markdown

HEADINGS = ("in the thought's place", "positions", "change of log p, nats", "KL, nats", "top token flips")
ON_SCREEN = (0, 2, 4)
"""columns that fit into 80 characters; files have the others, too"""
NOTHING = "\N{EN DASH}"


def _cells(each: Effects) -> tuple[str, ...]:
    same = f", {each.n_same:,} the same" if each.n_same else ""
    measures = (_signed(each.delta), _with_interval(each.kl, plain), _share(each.flips))
    return (each.label, f"{each.n:,}{same}", *measures)


def _signed(mean: Estimate | None) -> str:
    return _with_interval(mean, nats)


def _share(mean: Estimate | None) -> str:
    return NOTHING if mean is None else f"{100 * mean.value:.1f} % ({100 * mean.low:.1f} to {100 * mean.high:.1f})"


def _with_interval(mean: Estimate | None, show: Callable[[float], str]) -> str:
    if mean is None:
        return NOTHING
    return f"{show(mean.value)} ({show(mean.low)} to {show(mean.high)})" if isfinite(mean.low) else show(mean.value)


def effects_table(summary: Summary) -> Table:
    """Return a table for the screen: a row for each intervention, with 95 % intervals over positions."""
    table = Table(box=None, header_style="bold")
    for index in ON_SCREEN:
        table.add_column(HEADINGS[index], justify="right" if index else "left", overflow="fold")
    for each in summary.interventions:
        cells = _cells(each)
        table.add_row(*(cells[index] for index in ON_SCREEN))
    return table


def summary_markdown(summary: Summary) -> str:
    """Return Markdown: sentences, a table of interventions, and tables by difficulty of the token."""
    text = "".join(f"- {sentence}\n" for sentence in summary.sentences)
    if summary.gain is None:
        return text
    if summary.interventions:
        text += f"\n{markdown(HEADINGS, [_cells(each) for each in summary.interventions])}"
    text += f"\nIn brackets: 95 % intervals over positions; means have them from {FEWEST} positions on.\n"
    text += "\n## By difficulty of the token\n"
    if summary.interventions:
        text += "\nFor each intervention: change of log p, nats; KL, nats; how often the top token flips.\n"
    for _, bins in groupby(summary.difficulty, lambda each: each.by):
        text += f"\n{_difficulty_markdown(list(bins))}"
    return text


def _difficulty_markdown(bins: list[Difficulty]) -> str:
    labels = (each.label for each in bins[0].interventions)
    headings = (f"{bins[0].by}, nats", "positions", "gain, nats", "reward, nats", *labels)
    return markdown(headings, [_bin_cells(each) for each in bins])


def _bin_cells(each: Difficulty) -> tuple[str, ...]:
    edges = f"{each.low:g} {'up' if isinf(each.high) else f'to {each.high:g}'}"
    return (edges, f"{each.n:,}", _signed(each.gain), _signed(each.reward), *map(_short, each.interventions))


def _short(each: Effects) -> str:
    """Return an effect without intervals; summary.json and the report have them."""
    if each.delta is None or each.kl is None or each.flips is None:
        return NOTHING
    return f"{nats(each.delta.value)}; {plain(each.kl.value)}; {100 * each.flips.value:.0f} %"
