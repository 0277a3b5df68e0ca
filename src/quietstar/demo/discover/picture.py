"""A picture of `--discover`: right answers over steps, an arm beside the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quietstar.demo.discover.report import LABELS, Findings
from quietstar.demo.language import CHANCE
from quietstar.demo.picture import BLUE, GREY, INK, ORANGE, plain
from quietstar.demo.watch import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    "own_thoughts": ("right, with its own thoughts", BLUE, "-"),
    "base_pass": ("right, without thoughts", ORANGE, "-"),
    "scratch_letters": ("thoughts that are the scratch letter", GREY, (0, (3, 2))),
}


def draw(path: Path, found: Findings) -> None:
    """Draw a panel for each arm, with a line for each seed; bands are 95 % intervals of right answers with thoughts."""
    from matplotlib.figure import Figure

    n = len(found.curves)
    figure = Figure(figsize=(1.5 + 3.6 * n, 4.2), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    panels = figure.subplots(1, n, sharey=True, squeeze=False)[0]
    for axes, (arm, curves) in zip(panels, found.curves.items(), strict=True):
        draw_arm(axes, list(curves.values()))
        axes.set_title(LABELS[arm], loc="left", fontweight="bold", fontsize=10)
        axes.set_xlabel("steps of Quiet-STaR")
    panels[0].set_ylabel("held-out problems, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(STYLES), frameon=False)
    figure.savefig(path)


def draw_arm(axes: Axes, curves: list[list[Line]]) -> None:
    """Draw the curves of an arm, one for each seed."""
    for i, curve in enumerate(curves):
        steps = [line["step"] for line in curve]
        for name, (label, colour, style) in STYLES.items():
            values = [100 * line[name]["share"] for line in curve]
            axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.5, label=None if i else label)
        low, high = ([100 * line["own_thoughts"][end] for line in curve] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.axhline(100 * CHANCE, color=INK, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.set_ylim(-4, 106)
    axes.set_yticks(range(0, 101, 25))
    plain(axes, "y")
