"""Pictures of a study as inline SVG: nll against FLOPs, and differences with intervals. Colours come from the page."""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

ROW = 44
"""height of a line of the forest plot, in pixels"""
BAR = 30
"""how far below the top of its line a bar lies"""
N_COLOURS = 8
"""of arms; further ones begin again, with another dash"""


@dataclass(frozen=True, slots=True)
class Curve:
    """An arm's nll on the selection text while it was trained."""

    name: str
    points: list[tuple[float, float, float, float]]
    """PFLOP, mean over seeds, lowest and highest seed"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One difference with its interval."""

    name: str
    value: float
    low: float
    high: float


def curves(drawn: list[Curve]) -> str:
    """Return a chart of the curves, each with a band from its lowest to its highest seed."""
    xs = [x for curve in drawn for x, *_ in curve.points]
    ys = [y for curve in drawn for _, *values in curve.points for y in values]
    x, y = _scale((0.0, max(xs)), (0, 100)), _scale(_around(ys), (100, 0))
    lines = []
    for index, curve in enumerate(drawn):
        above = [f"{x(f):.2f} {y(high):.2f}" for f, _, _, high in curve.points]
        below = [f"{x(f):.2f} {y(low):.2f}" for f, _, low, _ in reversed(curve.points)]
        line = [f"{x(f):.2f} {y(mean):.2f}" for f, mean, _, _ in curve.points]
        look = _look(index)
        lines.append(f'<path class="band {look}" d="M{" L".join([*above, *below])}Z"/>')
        lines.append(
            f'<path class="curve {look}" d="M{" L".join(line)}"><title>{html.escape(curve.name)}</title></path>'
        )
    parts = [
        f'<line class="grid" x2="100%" y1="{y(at):.2f}%" y2="{y(at):.2f}%"/>'
        f'<text class="tick" x="-6" y="{y(at):.2f}%" dy="4" text-anchor="end">{at:g}</text>'
        for at in y.ticks()
    ]
    parts += [
        _below(x, "PFLOP of training"),
        f'<svg aria-hidden="true" viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(lines)}</svg>',
    ]
    said = "; ".join(f"{curve.name} from {curve.points[0][1]:.4f} to {curve.points[-1][1]:.4f}" for curve in drawn)
    return _svg("curves", f"nll of the selection text against FLOPs of training: {said}", parts)


def legend(names: Iterable[str]) -> str:
    """Return the names of the curves beside their colours."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 24 10" aria-hidden="true"><path class="curve {_look(index)}" d="M0 5H24"/>'
        f"</svg>{html.escape(name)}</li>"
        for index, name in enumerate(names)
    )
    return f'<ul class="keys">{items}</ul>'


def forest(bars: list[Bar], unit: str) -> str:
    """Return a forest plot: a line for each difference, from the low end of its interval to the high one."""
    x = _scale(_around([end for bar in bars for end in (bar.low, bar.high, 0.0)]), (0, 100))
    parts = [f'<line class="zero" x1="{x(0):.2f}%" x2="{x(0):.2f}%" y2="100%"/>', _below(x, unit)]
    for index, bar in enumerate(bars):
        top, kind = ROW * index, "better" if bar.low > 0 else "worse" if bar.high < 0 else "open"
        parts.append(
            f'<text class="name" y="{top + 16}">{html.escape(bar.name)}</text>'
            f'<line class="interval {kind}" x1="{x(bar.low):.2f}%" x2="{x(bar.high):.2f}%" y1="{top + BAR}" '
            f'y2="{top + BAR}"/><circle class="estimate {kind}" cx="{x(bar.value):.2f}%" cy="{top + BAR}" r="4">'
            f"<title>{html.escape(bar.name)}: {bar.value:+.4f}, {bar.low:+.4f} to {bar.high:+.4f}</title></circle>"
        )
    said = "; ".join(f"{bar.name} {bar.value:+.4f} ({bar.low:+.4f} to {bar.high:+.4f})" for bar in bars)
    return _svg("forest", f"differences with their intervals, {unit}: {said}", parts, height=ROW * len(bars))


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to coordinates."""

    values: tuple[float, float]
    places: tuple[float, float]

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        (low, high), (first, last) = self.values, self.places
        return first + (value - low) / (high - low) * (last - first)

    def ticks(self) -> list[float]:
        """Return about five round values, rising."""
        low, high = self.values
        size = 10 ** math.floor(math.log10((high - low) / 5))
        step = next(each for each in (size, 2 * size, 5 * size, 10 * size) if (high - low) / each <= 6)
        first = math.ceil(low / step - 1e-9)
        return [round((first + n) * step, 10) for n in range(8) if (first + n) * step <= high + 1e-9 * step]


def _scale(values: tuple[float, float], places: tuple[float, float]) -> Scale:
    low, high = values
    return Scale((low, high if high > low else low + 1.0), places)


def _around(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


def _look(index: int) -> str:
    """Return the classes of an arm's curve: its colour, and dashes for those beyond the colours."""
    return f"arm-{index % N_COLOURS}{' dashed' if index >= N_COLOURS else ''}"


def _below(x: Scale, label: str) -> str:
    """Return the axis below a chart, its ticks and its name."""
    parts = [
        f'<text class="tick" x="{x(at):.2f}%" y="100%" dy="18" text-anchor="middle">{at:g}</text>' for at in x.ticks()
    ]
    parts.append('<line class="axis" x2="100%" y1="100%" y2="100%"/>')
    parts.append(f'<text class="tick" x="50%" y="100%" dy="38" text-anchor="middle">{html.escape(label)}</text>')
    return "".join(parts)


def _svg(kind: str, label: str, parts: list[str], height: int | None = None) -> str:
    """Return a chart that is as wide as the page allows, with letters of one size: places across are percentages."""
    size = "" if height is None else f' height="{height}"'
    return f'<svg class="chart {kind}"{size} role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
