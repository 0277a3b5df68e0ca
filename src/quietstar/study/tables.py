"""The tables of a study, from the plain JSON of its findings; study.md and study.html show the same ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quietstar.reporting.interval import Estimate

Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""headings, and rows"""

LOGGED = ("eval_mixing_weight", "thought_entropy", "eval_distinct_thoughts", "eval_thought_length")
"""figures of thoughts that the table of arms shows if an arm has them, as training logs them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table, and what it says."""

    title: str
    about: str
    of: Callable[[dict[str, Any]], Cells]
    n_left: int
    """columns that are aligned to the left"""
    is_of_runs: bool = False
    """whether its rows are the runs, in order"""


def arms(findings: dict[str, Any]) -> Cells:
    """What each arm is, its nll and its tasks, and figures of its thoughts."""
    levels = findings["levels"]
    places = list(dict.fromkeys(each["where"] for each in levels))
    logged = [name for name in LOGGED if any(run["figures"].get(name) is not None for run in findings["runs"])]
    rows = []
    for name, arm in findings["recipe"]["arms"].items():
        by_where = {each["where"]: each["estimate"] for each in levels if each["arm"] == name}
        of_arm = [run for run in findings["runs"] if run["arm"] == name]
        if by_where:
            rows.append(
                (
                    name,
                    arm["about"],
                    str(len(of_arm)),
                    *(_level(by_where[where]) if where in by_where else "" for where in places),
                    *(_mean([run["figures"].get(figure) for run in of_arm]) for figure in logged),
                )
            )
    names = tuple(name.removeprefix("eval_").replace("_", " ") for name in logged)
    return ("arm", "what it is", "seeds", *places, *names), rows


def differences(findings: dict[str, Any]) -> Cells:
    """By how much each candidate is better than each other arm."""
    rows: list[tuple[str, ...]] = [
        (each["arm"], each["control"], each["where"], Estimate(**each["estimate"]).signed(), str(each["n_seeds"]))
        for each in findings["differences"]
    ]
    return ("arm", "beside", "where", "better by", "seeds"), rows


def replaced(findings: dict[str, Any]) -> Cells:
    """What trained models' own thoughts are worth beside replacements."""
    rows: list[tuple[str, ...]] = [
        (each["arm"], each["intervention"], Estimate(**each["estimate"]).signed(), str(each["n_seeds"]))
        for each in findings["replaced"]
    ]
    return ("arm", "in their place", "worth", "seeds"), rows


def cost(findings: dict[str, Any]) -> Cells:
    """What each run took, counted and measured, and what a token takes afterwards."""
    runs = findings["runs"]
    base = next(run["seconds_a_token"] for run in runs if run["arm"] == "base")
    rows: list[tuple[str, ...]] = []
    for run in runs:
        pflop = run["n_steps"] * run["step_flops"] / 1e15
        trained = run["n_steps"] > 0
        rows.append(
            (
                run["arm"],
                "" if run["seed"] is None else str(run["seed"]),
                f"{run['n_steps']:,}" if trained else "",
                f"{run['chosen_step']:,}" if trained else "",
                f"{pflop:.3g}" if trained else "",
                f"{run['train_seconds']:,.0f}" if trained else "",
                f"{pflop * 1e6 / run['train_seconds']:.3g}" if run["train_seconds"] else "",
                f"{run['passes_a_token']:.3g}",
                f"{run['seconds_a_token'] / base:.3g}",
            )
        )
    return (
        "arm", "seed", "steps", "chosen step", "PFLOP", "seconds", "GFLOP/s", "passes a token", "times base to score",
    ), rows  # fmt: skip


TABLES = (
    Table(
        title="Arms",
        about="nll in nats a token and shares of right answers, with 95 % intervals for other seeds and other texts. "
        "Figures of thoughts are those of the selection text, except the entropy, which is training's at its end.",
        of=arms,
        n_left=2,
    ),
    Table(
        title="Differences",
        about="Above 0, the arm is better, seed by seed on the same tokens.",
        of=differences,
        n_left=3,
    ),
    Table(
        title="Its own thoughts beside others",
        about="By how many nats a token a trained model predicts better with its own thoughts than with others in "
        "their place.",
        of=replaced,
        n_left=2,
    ),
    Table(
        title="Cost",
        about="Of training, the arithmetic that full rows need, and the time that it took, evaluations included. "
        "Afterwards, the forward passes of a token in decoding, and the time to score one beside the base's.",
        of=cost,
        n_left=1,
        is_of_runs=True,
    ),
)


def about(findings: dict[str, Any]) -> str:
    """Return what was compared on what, in two sentences."""
    recipe = findings["recipe"]
    return (
        f"Base model {recipe['model']}, trained on {recipe['dataset']}. Checkpoints were chosen on "
        f"{recipe['selection']}; figures are from {recipe['test']}: {findings['n_test_tokens']:,} tokens, "
        f"{findings['n_hard_tokens']:,} of them hard, the fifth with the highest entropy under the untouched base."
    )


def _level(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4f} ({estimate['low']:.4f} to {estimate['high']:.4f})"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""
