"""The demo's figures as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietstar.demo.language import CHANCE
from quietstar.demo.report import Figures, percent
from quietstar.errors import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "base": "base model,\nno thoughts",
    "base_pass": "after Quiet-STaR,\nno thoughts",
    "random_thoughts": "after Quiet-STaR,\nrandom thoughts",
    "own_thoughts": "after Quiet-STaR,\nits own thoughts",
    "spelled_out": "base model, spelling\nthe way out",
}
BLUE, ORANGE, GREY, LIGHT, INK = "#0072b2", "#d55e00", "#8c8c8c", "#c9c9c9", "#2b2b2b"
"""a palette for colour-blind readers, too (Okabe and Ito 2008)"""
COLOURS = {"base": GREY, "base_pass": ORANGE, "random_thoughts": LIGHT, "own_thoughts": BLUE, "spelled_out": "white"}


def require_matplotlib() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    need("matplotlib.figure", "plot", "the demo's picture (or leave it out with --picture false)")


def draw(path: Path, figures: Figures, diary: Sequence[dict[str, Any]]) -> None:
    """Draw right answers as bars on the left, and on the right how the model learned to think, step by step.

    The steps are the lines of the stage "thoughts" in the diary.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.04)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.05, 1), height_ratios=(1.5, 1))
    draw_shares(figure.add_subplot(grid[:, 0]), figures)
    above = figure.add_subplot(grid[0, 1])
    below = figure.add_subplot(grid[1, 1], sharex=above)
    lines = [line for line in diary if line["stage"] == "thoughts"]
    draw_accuracy(above, lines)
    draw_reward(below, lines)
    figure.savefig(path)


def draw_shares(axes: Axes, figures: Figures) -> None:
    """Draw a bar for each figure, with its interval, and a line at chance."""
    names = list(LABELS)
    for y, name in enumerate(names):
        share = figures[name]
        low, high = share.interval
        edge = GREY if name == "spelled_out" else COLOURS[name]
        axes.barh(y, 100 * share.value, height=0.62, color=COLOURS[name], edgecolor=edge, linewidth=1.2)
        axes.plot([100 * low, 100 * high], [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
        for end in (low, high):
            axes.plot([100 * end] * 2, [y - 0.1, y + 0.1], color=INK, linewidth=1.4)
        weight = "bold" if name == "own_thoughts" else "normal"
        axes.text(100 * high + 2, y, percent(share.value), va="center", color=INK, fontweight=weight)
    axes.axvline(100 * CHANCE, color=INK, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.text(100 * CHANCE + 1.5, len(names) - 0.58, "chance", color=INK, fontsize=9, va="center")
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("right answers, % (bars: share; whiskers: 95 % interval)")
    axes.set_title(f"{figures['own_thoughts'].n} held-out problems", loc="left", fontweight="bold")
    plain(axes, "x")


def draw_accuracy(axes: Axes, lines: Sequence[dict[str, Any]]) -> None:
    """Draw held-out accuracy at each measured step."""
    measured = [line for line in lines if "held_out_own_thoughts" in line]
    steps = [line["step"] for line in measured]
    for name, label, colour, style in (
        ("held_out_own_thoughts", "with its own thoughts", BLUE, "o-"),
        ("held_out_base_pass", "without", ORANGE, "s-"),
    ):
        values = [100 * line[name] for line in measured]
        axes.plot(steps, values, style, color=colour, label=label, markersize=3.5, linewidth=1.6)
    axes.axhline(100 * CHANCE, color=INK, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.set_ylim(-4, 106)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("right answers, %")
    axes.tick_params(labelbottom=False)
    axes.set_title("Learning to think from unspelled lines", loc="left", fontweight="bold")
    if measured:
        title = f"{measured[-1]['n_held_out']} of the held-out problems"
        legend = axes.legend(frameon=False, loc="center right", title=title, alignment="left")
        legend.get_title().set_fontsize(9)
    plain(axes, "y")


def draw_reward(axes: Axes, lines: Sequence[dict[str, Any]]) -> None:
    """Draw the mean reward of the thoughts at each training step."""
    rewarded = [line for line in lines if "reward_mean" in line]
    values = [line["reward_mean"] for line in rewarded]
    axes.plot([line["step"] for line in rewarded], values, color=BLUE, linewidth=1.6)
    axes.axhline(0, color=INK, linewidth=1, zorder=0)
    axes.set_ylabel("reward, nats")
    axes.set_xlabel("steps of Quiet-STaR (reward: mean over all positions)")
    plain(axes, "y")


def plain(axes: Axes, grid: str) -> None:
    """Remove ink that carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
