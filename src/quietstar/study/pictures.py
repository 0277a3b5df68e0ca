"""Pictures of a study as inline SVG: nll against FLOPs, and differences with intervals. Colours come from the page."""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 16, 12, 46
ROW = 26
"""height of a line of the forest plot"""
NAMES = 230
"""width of its names"""
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
    x, y = _scale((0.0, max(xs)), (LEFT, WIDTH - RIGHT)), _scale(_around(ys), (HEIGHT - BOTTOM, TOP))
    parts = [_grid(x, y, "PFLOP of training", "nats a token, selection text")]
    for index, curve in enumerate(drawn):
        above = [f"{x(f):.1f} {y(high):.1f}" for f, _, _, high in curve.points]
        below = [f"{x(f):.1f} {y(low):.1f}" for f, _, low, _ in reversed(curve.points)]
        line = [f"{x(f):.1f} {y(mean):.1f}" for f, mean, _, _ in curve.points]
        look = _look(index)
        parts.append(f'<path class="band {look}" d="M{" L".join([*above, *below])}Z"/>')
        parts.append(
            f'<path class="curve {look}" d="M{" L".join(line)}"><title>{html.escape(curve.name)}</title></path>'
        )
    return _svg(WIDTH, HEIGHT, "nll of the selection text against FLOPs of training, for each arm", parts)


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
    height = TOP + ROW * len(bars) + BOTTOM
    ends = [end for bar in bars for end in (bar.low, bar.high, 0.0)]
    x = _scale(_around(ends), (NAMES, WIDTH - RIGHT))
    bottom = height - BOTTOM
    parts = [
        f'<text class="tick" x="{x(at):.1f}" y="{bottom + 16}" text-anchor="middle">{at:g}</text>' for at in x.ticks()
    ]
    parts.append(
        f'<path class="zero" d="M{x(0):.1f} {TOP}V{bottom}"/><path class="axis" d="M{NAMES} {bottom}H{WIDTH - RIGHT}"/>'
    )
    parts.append(
        f'<text class="tick" x="{(NAMES + WIDTH) / 2}" y="{height - 8}" text-anchor="middle">{html.escape(unit)}</text>'
    )
    for index, bar in enumerate(bars):
        middle = TOP + ROW * (index + 0.5)
        kind = "better" if bar.low > 0 else "worse" if bar.high < 0 else "open"
        parts.append(
            f'<text class="name" x="0" y="{middle + 4:.1f}">{html.escape(bar.name)}</text>'
            f'<path class="interval {kind}" d="M{x(bar.low):.1f} {middle:.1f}H{x(bar.high):.1f}"/>'
            f'<circle class="estimate {kind}" cx="{x(bar.value):.1f}" cy="{middle:.1f}" r="4">'
            f"<title>{html.escape(bar.name)}: {bar.value:+.4f}, {bar.low:+.4f} to {bar.high:+.4f}</title></circle>"
        )
    return _svg(WIDTH, height, f"differences with their intervals, {unit}", parts)


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


def _grid(x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    parts = [
        f'<path class="grid" d="M{LEFT} {y(at):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(at) + 4:.1f}" text-anchor="end">{at:g}</text>'
        for at in y.ticks()
    ]
    bottom = HEIGHT - BOTTOM
    parts += [
        f'<text class="tick" x="{x(at):.1f}" y="{bottom + 16}" text-anchor="middle">{at:g}</text>' for at in x.ticks()
    ]
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x_label}</text>')
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="tick" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{y_label}</text>'
    )
    return "".join(parts)


def _svg(width: int, height: float, label: str, parts: list[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height:g}" role="img" aria-label="{html.escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
