"""The results of an evaluation as a JSON file, a Markdown file, and a table for the terminal."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from quietstar.evaluation.lengths import LengthPoint
from quietstar.evaluation.perplexity import Bin, Perplexity
from quietstar.evaluation.sweep import Point
from quietstar.reporting.interval import Estimate
from quietstar.reporting.tables import finite, markdown
from quietstar.runs.folders import write_whole

HEADINGS = (
    "task", "measure", "mode", "items", "value", "95 % interval", "vs without", "vs baseline", "thoughts at",
    "tokens a thought", "items/s",
)  # fmt: skip
MODES = {"base": "without thoughts", "thinking": "with thoughts", "original": "plain model"}
"""mode of a figure -> what the table calls it"""
CAVEAT = (
    "A gain over the same model without thoughts may come from computation alone: quietstar inspect compares thoughts "
    "with filler, quietstar study with plain training."
)


@dataclass(slots=True, kw_only=True)
class Figure:
    """One measured value."""

    task: str
    measure: str
    mode: str
    """original, base (a thinking model without its thoughts) or thinking"""
    estimate: Estimate
    difference: Estimate | None = None
    """paired difference to the mode base"""
    beside_baseline: Estimate | None = None
    """paired difference to an earlier evaluation"""
    share_thought: float | None = None
    """share of the scored positions with a thought"""
    thought_length: float | None = None
    """mean number of sampled tokens of a thought"""
    seconds: float | None = None
    notes: str = ""

    @property
    def samples_per_second(self) -> float | None:
        """Items per second of scoring."""
        return self.estimate.n / self.seconds if self.seconds else None

    def cells(self) -> tuple[str, ...]:
        """Return the figure as a row of the table."""
        return (
            self.task,
            self.measure if _is_share(self.measure) else f"{self.measure} (less is better)",
            MODES.get(self.mode, self.mode),
            str(self.estimate.n),
            _value(self.measure, self.estimate.value) + _perplexity(self.measure, self.estimate.value),
            _between(self.measure, self.estimate),
            _difference(self.measure, self.difference),
            _difference(self.measure, self.beside_baseline),
            "" if self.share_thought is None else f"{100 * self.share_thought:.0f} %",
            "" if self.thought_length is None else f"{self.thought_length:.3g}",
            "" if self.samples_per_second is None else _rate(self.samples_per_second),
        )


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _is_share(measure: str) -> bool:
    return not measure.startswith("nll") and "perplexity" not in measure and measure != "bits_per_byte"


def _value(measure: str, value: float) -> str:
    if not _is_share(measure):
        return f"{value:.4f}"
    return f"{100 * value:.2f} %"


def _perplexity(measure: str, value: float) -> str:
    return f" (perplexity {math.exp(value):.4g})" if measure == "nll, nats a token" and value < 700 else ""


def _between(measure: str, estimate: Estimate) -> str:
    """Format an interval; nothing if a single item gives none."""
    if estimate.n == 1 and estimate.low == estimate.high:
        return ""
    low, high = _value(measure, estimate.low), _value(measure, estimate.high)
    return f"{low.removesuffix(' %')} - {high}"


def _difference(measure: str, estimate: Estimate | None) -> str:
    """Format a difference: +1.20 (+0.40 to +2.10)"""
    if estimate is None:
        return ""
    if estimate.n == 1:
        return f"{estimate.value:+.4f}" if not _is_share(measure) else f"{100 * estimate.value:+.2f}"
    if not _is_share(measure):
        return estimate.signed()
    return f"{100 * estimate.value:+.2f} ({100 * estimate.low:+.2f} to {100 * estimate.high:+.2f})"


def rows_of(figures: list[Figure]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and rows, without empty columns."""
    rows = [figure.cells() for figure in figures]
    used = [index for index in range(len(HEADINGS)) if any(row[index] for row in rows) or not rows]
    return tuple(HEADINGS[index] for index in used), [tuple(row[index] for index in used) for row in rows]


def table(figures: list[Figure]) -> Table:
    """Return the table for the terminal."""
    headings, rows = rows_of(figures)
    made = Table(box=None, header_style="bold")
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if index < 3 else "right", overflow="fold")
    for figure, row in zip(figures, rows, strict=True):
        made.add_row(*row, style="bold" if figure.mode == "thinking" else None)
    return made


def perplexity_markdown(found: Perplexity) -> str:
    """Return tables of perplexity by difficulty of the token."""
    text = ""
    for what, bins in (("nll", found.by_nll), ("entropy", found.by_entropy)):
        headings = (f"base {what}, nats", "tokens", "base nll", "thinking nll", "gained by thoughts (95 %)")
        text += "\n" + markdown(headings, [_bin_cells(each) for each in bins])
    return text


def _bin_cells(each: Bin) -> tuple[str, ...]:
    high = "up" if math.isinf(each.high) else f"- {each.high:g}"
    return (
        f"{each.low:g} {high}",
        f"{each.n:,}",
        f"{each.base_nll:.4f}",
        f"{each.thinking_nll:.4f}",
        each.gain.signed(),
    )


def sweep_markdown(points: list[Point]) -> str:
    """Return a table with a row per threshold."""
    return markdown(
        ("policy", "thoughts at", "answer probability", "exact match"),
        [
            (
                point.policy,
                f"{100 * point.share_thought:.1f} %",
                f"{100 * point.answer_probability:.2f} %",
                f"{100 * point.exact_match:.2f} %",
            )
            for point in points
        ],
    )


def lengths_markdown(points: list[LengthPoint]) -> str:
    """Return a table with a row per length of thoughts; perplexity is that of the nll."""
    headings = (
        "n_ahead", "forward passes a token", "answer probability", "vs without", "nll, nats", "vs without",
        "perplexity",
    )  # fmt: skip
    rows = [
        (
            "no thoughts" if point.n_ahead is None else str(point.n_ahead),
            f"{point.passes:.3g}",
            _with_interval("answer_probability", point.answer_probability),
            "" if point.n_ahead is None else _difference("answer_probability", point.answer_difference),
            _with_interval("nll", point.nll),
            "" if point.n_ahead is None else _difference("nll", point.nll_difference),
            f"{math.exp(point.nll.value):.3f}",
        )
        for point in points
    ]
    used = [index for index in range(len(headings)) if any(row[index] for row in rows)]
    return markdown(tuple(headings[index] for index in used), [tuple(row[index] for index in used) for row in rows])


def _with_interval(measure: str, estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{_value(measure, estimate.value)} ({_between(measure, estimate)})"


def caveat(figures: list[Figure]) -> str:
    """Return what to beware of, if thoughts are among what was measured."""
    return CAVEAT if any(figure.mode == "thinking" for figure in figures) else ""


def write(
    folder: Path,
    figures: list[Figure],
    settings: dict[str, Any],
    perplexity: Perplexity | None,
    sweeps: dict[str, list[Point]],
    by_length: dict[str, list[LengthPoint]],
    further: dict[str, Any],
) -> None:
    """Write results.json and results.md."""
    text = "# Results\n\n" + markdown(*rows_of(figures), n_left=3)
    text += f"\n{said}\n" if (said := caveat(figures)) else ""
    if notes := dict.fromkeys(f"{figure.task}: {figure.notes}" for figure in figures if figure.notes):
        text += "\n" + "".join(f"- {note}\n" for note in notes)
    for task, points in sweeps.items():
        text += f"\n## {task} by share of positions with a thought\n\n" + sweep_markdown(points)
    for name, curve in by_length.items():
        text += f"\n## {name} by length of thoughts (95 % intervals)\n\n" + lengths_markdown(curve)
    if perplexity is not None and perplexity.by_nll:
        text += "\n## Gain by difficulty of the token\n" + perplexity_markdown(perplexity)
    results = {
        **settings,
        "results": [asdict(figure) | {"samples_per_second": figure.samples_per_second} for figure in figures],
        **({"perplexity": asdict(perplexity)} if perplexity is not None else {}),
        **{
            name: {of: [asdict(point) for point in points] for of, points in found.items()}
            for name, found in (("sweep", sweeps), ("sweep_n_ahead", by_length))
            if found
        },
        **further,
    }
    write_whole(folder / "results.json", json.dumps(finite(results), indent=2, default=str) + "\n")
    write_whole(folder / "results.md", text)
