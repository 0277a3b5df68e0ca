"""The summary of a trace for the screen and for Markdown."""

from rich.table import Table

from quietstar.evaluation.interval import Estimate
from quietstar.evaluation.report import markdown
from quietstar.inspection.summary import Effects, Summary, nats

HEADINGS = ("in the thought's place", "positions", "log p of the truth, nats", "KL, nats", "top word flips")


def _cells(each: Effects) -> tuple[str, ...]:
    if each.delta is None or each.kl is None or each.flips is None:
        return (each.label, "0", "", "", "")
    return (each.label, f"{each.n:,}", _signed(each.delta), _plain(each.kl), _share(each.flips))


def _signed(of: Estimate) -> str:
    return f"{nats(of.value)} ({nats(of.low)} to {nats(of.high)})"


def _plain(of: Estimate) -> str:
    return f"{of.value:.3f} ({of.low:.3f} to {of.high:.3f})"


def _share(of: Estimate) -> str:
    return f"{100 * of.value:.1f} % ({100 * of.low:.1f} to {100 * of.high:.1f})"


def effects_table(summary: Summary) -> Table:
    """For the screen: a row for each intervention, with 95 % intervals over positions."""
    table = Table(box=None, header_style="bold")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for each in summary.interventions:
        table.add_row(*_cells(each))
    return table


def summary_markdown(summary: Summary) -> str:
    """Sentences, and a row for each intervention."""
    sentences = "".join(f"- {sentence}\n" for sentence in summary.sentences)
    if not summary.interventions:
        return sentences
    rows = [_cells(each) for each in summary.interventions]
    return f"{sentences}\n{markdown(HEADINGS, rows)}\nIn brackets: 95 % intervals over positions.\n"
