"""Figures of a trace as PNG and PDF: the text coloured as in the report, and distributions of its values."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietstar.errors import need
from quietstar.web import scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"weight": "mixing weight", "reward": "reward, nats", "gain": "gain in log-probability, nats"}
"""per-position values that colour a text, and their names"""
MOST_POSITIONS = 600
"""most positions of the text to plot"""
MOST_LINES = 200
"""most lines to plot"""
COLUMNS = 96
"""characters in a line"""
FONT = "DejaVu Sans Mono"
"""ships with matplotlib"""
MISSING = "\N{WHITE SQUARE}"
"""replaces characters that the font lacks"""
CELL, LINE = 0.0805, 0.235
"""inches: width of a character at 9.6 points, height of a line"""
MARGIN, HEAD = 0.3, 0.75
"""inches"""
INK, MUTED, GRID, BLUE, ORANGE = "#1d1f23", "#5b5f67", "#e4e2dc", "#1f5f9e", "#a4530b"


def need_matplotlib() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    need("matplotlib", "inspect", "figures (or leave out --figures)")


def draw_figures(payload: dict[str, Any], folder: Path) -> list[Path]:
    """Write text_weight, text_reward, text_gain and distributions as .png and .pdf, and return the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # a user's own settings (TeX, fonts) must not change the figures
    with rc_context({"text.usetex": False, "font.family": ["DejaVu Sans"], "font.size": 9, "pdf.fonttype": 42}):
        figures = {f"text_{name}": draw_text(payload, name) for name in NAMES}
        figures["distributions"] = draw_distributions(payload)
        for name, figure in figures.items():
            for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
                written.append(folder / (name + suffix))
                figure.savefig(written[-1], dpi=150, metadata=metadata)
    return written


@dataclass(slots=True)
class Span:
    """A token, or the part of it on one line."""

    line: int
    column: int
    text: str
    width: int
    """in characters"""
    index: int
    """position, counted over all rows"""


def lay_out(rows: Sequence[Sequence[str]], known: set[int]) -> list[Span]:
    """Lay out the first tokens of all rows in lines of COLUMNS characters, with an empty line between rows.

    A row is its tokens' pieces of text; `known` are the code points that the font has.
    """
    spans: list[Span] = []
    line = column = index = 0
    for number, pieces in enumerate(rows):
        if index == MOST_POSITIONS or line >= MOST_LINES:
            break
        if number:
            line, column = line + 2, 0
        for piece in pieces[: MOST_POSITIONS - index]:
            if line >= MOST_LINES:
                break
            for part in _parts(piece, known):
                width = sum(map(_width, part))
                if column + width > COLUMNS:
                    line, column = line + 1, 0
                spans.append(Span(line, column, part, width, index))
                column += width
                if part.endswith("↵"):
                    line, column = line + 1, 0
            index += 1
    return spans


def _parts(piece: str, known: set[int]) -> Iterator[str]:
    """Yield a piece as it is printed, cut after line ends and at the length of a line."""
    shown = "".join(_printed(character, known) for character in unicodedata.normalize("NFC", piece)) or "▏"
    shown = f"◌{shown}" if unicodedata.combining(shown[0]) else shown
    part, width = "", 0
    for character in shown:
        if width + _width(character) > COLUMNS:
            yield part
            part, width = "", 0
        part, width = part + character, width + _width(character)
        if character == "↵":
            yield part
            part, width = "", 0
    if part:
        yield part


def _printed(character: str, known: set[int]) -> str:
    if character == "\n":
        return "↵"
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    if category.startswith(("C", "Zl", "Zp")):
        return f"⟨U+{ord(character):04X}⟩"
    return character if ord(character) in known else MISSING


def _width(character: str) -> int:
    return 0 if unicodedata.combining(character) else 1


def draw_text(payload: dict[str, Any], name: str) -> Figure:
    """Return a figure of the first MOST_POSITIONS tokens on the colours of their values, grey if they have none."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.patches import Rectangle

    values = [value for row in payload["rows"] for value in row[name]]
    spans = lay_out([row["pieces"] for row in payload["rows"]], set(get_font(findfont(FONT)).get_charmap()))
    n_lines = max((span.line for span in spans), default=0) + 1
    width, height = COLUMNS * CELL + 2 * MARGIN, n_lines * LINE + 2 * MARGIN + HEAD
    end, colours = scale.limit(values), scale.colours()
    figure = Figure(figsize=(width, height), facecolor=colours[scale.N_STEPS])
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    font = FontProperties(family=FONT, size=9.6)
    for span in spans:
        value = values[span.index]
        x, y = MARGIN + span.column * CELL, MARGIN + HEAD + span.line * LINE
        if value is not None:
            colour = colours[scale.index(value, end)]
            axes.add_patch(Rectangle((x, y), span.width * CELL - 0.01, LINE - 0.035, color=colour, linewidth=0))
        axes.text(
            x,
            y + 0.65 * LINE,
            span.text,
            fontproperties=font,
            color=MUTED if value is None else INK,
            parse_math=False,
        )
    n_shown = len({span.index for span in spans})
    cut = f"the first {n_shown} of {len(values)} positions" if n_shown < len(values) else f"{len(values)} positions"
    _head(axes, NAMES[name], f"{cut}; grey: no value", end, colours)
    return figure


def _head(axes: Axes, title: str, note: str, end: float, colours: list[str]) -> None:
    from matplotlib.patches import Rectangle

    axes.text(MARGIN, MARGIN + 0.12, title[0].upper() + title[1:], fontsize=12, fontweight="bold", color=INK)
    axes.text(MARGIN, MARGIN + 0.38, note, color=MUTED)
    right = COLUMNS * CELL + MARGIN
    left = right - 0.2 * len(colours) - 0.5
    for index, colour in enumerate(colours):
        swatch = Rectangle((left + 0.2 * index, MARGIN), 0.2, 0.16, facecolor=colour, edgecolor=GRID, linewidth=0.5)
        axes.add_patch(swatch)
    axes.text(left - 0.06, MARGIN + 0.13, f"\N{MINUS SIGN}{end:g}", ha="right", color=MUTED)
    axes.text(right - 0.44, MARGIN + 0.13, f"+{end:g}", color=MUTED)


def draw_distributions(payload: dict[str, Any]) -> Figure:
    """Return histograms of reward and mixing weight, reward against difficulty, and effects of interventions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), facecolor="white", layout="constrained")
    axes = figure.subplots(2, 2)
    for place, name in zip(axes[0], ("reward", "weight"), strict=True):
        _histogram(place, [value for row in payload["rows"] for value in row[name] if value is not None], NAMES[name])
    _difficulty(axes[1, 0], payload)
    _interventions(axes[1, 1], payload["interventions"])
    for place in axes.flat:
        place.spines[["top", "right"]].set_visible(False)
        place.spines[["left", "bottom"]].set_color(MUTED)
        place.tick_params(colors=INK, length=0)
        place.set_axisbelow(True)
    return figure


def _histogram(axes: Axes, values: list[float], name: str) -> None:
    axes.set_title(name.split(",")[0].capitalize(), loc="left", fontweight="bold")
    axes.set_xlabel(name)
    axes.set_ylabel("positions")
    axes.grid(axis="y", color=GRID)
    if not values:
        _nothing(axes)
        return
    low, high = _middle(values)
    axes.hist([min(max(value, low), high) for value in values], bins=40, range=(low, high), color=BLUE, alpha=0.8)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))


def _middle(values: list[float]) -> tuple[float, float]:
    """Return the range from the 1st to the 99th percentile, widened if all values are equal."""
    ordered = sorted(values)
    low, high = ordered[int(0.01 * len(ordered))], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    margin = abs(low) / 2 or 0.5
    return (low, high) if high - low > 1e-9 * abs(low) else (low - margin, high + margin)


def _difficulty(axes: Axes, payload: dict[str, Any]) -> None:
    axes.set_title("Reward against difficulty", loc="left", fontweight="bold")
    axes.set_xlabel("base nll of the next token, nats (lines: mean of a bin, 95 % interval)")
    axes.set_ylabel("reward, nats")
    axes.grid(axis="y", color=GRID)
    points = [
        (-base, reward)
        for row in payload["rows"]
        for base, reward in zip(row["base_logprob"], row["reward"], strict=True)
        if base is not None and reward is not None
    ]
    if not points:
        _nothing(axes)
        return
    right = max(_middle([x for x, _ in points])[1], 1e-6)
    low, high = _middle([y for _, y in points])
    axes.scatter([x for x, _ in points], [y for _, y in points], s=6, color=BLUE, alpha=0.35, linewidths=0)
    axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    for each in payload["difficulty"]:
        reward = each["reward"]
        if each["by"] != "base nll" or reward is None:
            continue
        to = right if each["high"] is None or math.isinf(each["high"]) else min(each["high"], right)
        if to > each["low"]:
            axes.hlines(reward["value"], each["low"], to, color=ORANGE, linewidth=2)
            bottom, top = _ends(reward)
            axes.vlines((each["low"] + to) / 2, bottom, top, color=ORANGE, linewidth=2)
            low, high = min(low, bottom), max(high, top)
    axes.set(xlim=(0, right * 1.02), ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)))


def _interventions(axes: Axes, interventions: list[dict[str, Any]]) -> None:
    axes.set_title("With another thought", loc="left", fontweight="bold")
    axes.set_xlabel("change in log-probability of the next token, nats (95 % interval)")
    axes.grid(axis="x", color=GRID)
    known = [each for each in interventions if each["delta"] is not None]
    if not known:
        _nothing(axes)
        return
    for y, each in enumerate(known):
        delta = each["delta"]
        axes.hlines(y, *_ends(delta), color=ORANGE, linewidth=2)
        axes.plot(delta["value"], y, "o", color=ORANGE, markersize=5)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    axes.set_yticks(range(len(known)), [each["label"] for each in known], parse_math=False)
    axes.set_ylim(len(known) - 0.4, -0.6)


def _ends(estimate: dict[str, Any]) -> tuple[float, float]:
    """Return the ends of the interval, or the value twice if there are too few positions for one."""
    value = estimate["value"]
    return (value, value) if estimate["low"] is None else (estimate["low"], estimate["high"])


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color=MUTED)
