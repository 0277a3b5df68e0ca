"""What a study found: study.json and study.md."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quietstar.reporting.interval import Estimate
from quietstar.reporting.tables import finite, markdown
from quietstar.runs.folders import versions, write_whole
from quietstar.study.comparison import ALL_TOKENS, HARD_TOKENS, Comparison, Difference, Level, Replaced
from quietstar.study.measure import Measured
from quietstar.study.recipe import Recipe
from quietstar.study.verdict import nats, verdict

LOGGED = ("eval_mixing_weight", "thought_entropy", "eval_distinct_thoughts", "eval_thought_length")
"""figures of thoughts that the table of arms shows, as training logs them"""


def findings_of(recipe: Recipe, records: list[Measured]) -> dict[str, Any]:
    """Return everything that a study found, as study.json has it.

    Raises:
        SettingsError: the untouched base has not been measured.
    """
    found = Comparison(recipe, records)
    levels, differences, replaced = found.levels(), found.differences(), found.replaced()
    return finite(
        {
            "verdict": verdict(found, differences, replaced),
            "recipe": recipe.to_dict(),
            "versions": versions(),
            "n_test_tokens": sum(map(len, found.masks[ALL_TOKENS])),
            "n_hard_tokens": int(sum(mask.sum() for mask in found.masks[HARD_TOKENS])),
            "levels": [asdict(each) for each in levels],
            "differences": [asdict(each) for each in differences],
            "replaced": [asdict(each) for each in replaced],
            "runs": [_run(record) for record in records],
        }
    )  # type: ignore[no-any-return]


def _run(record: Measured) -> dict[str, Any]:
    """Return a run's record without its figures of single tokens, which lie in its own folder."""
    kept = asdict(record)
    for name in ("nll", "base_nll", "entropy", "interventions", "tasks"):
        del kept[name]
    return kept


def write_report(folder: Path, findings: dict[str, Any]) -> None:
    """Write study.json and study.md into a folder."""
    write_whole(folder / "study.json", json.dumps(findings, indent=2) + "\n")
    write_whole(folder / "study.md", study_markdown(findings))


def study_markdown(findings: dict[str, Any]) -> str:
    """Return the whole study as Markdown: the verdict first, then tables."""
    recipe = findings["recipe"]
    levels = [Level(**each | {"estimate": Estimate(**each["estimate"])}) for each in findings["levels"]]
    differences = [Difference(**each | {"estimate": Estimate(**each["estimate"])}) for each in findings["differences"]]
    replaced = [Replaced(**each | {"estimate": Estimate(**each["estimate"])}) for each in findings["replaced"]]
    lines = [
        "# Do thoughts pay?\n\n",
        f"Base model {recipe['model']}, trained on {recipe['dataset']}; checkpoints chosen on {recipe['selection']}, figures "
        f"from {recipe['test']}: {findings['n_test_tokens']:,} tokens, {findings['n_hard_tokens']:,} of them hard (the "
        "fifth with the highest entropy under the untouched base).\n\n",
        "".join(f"- {sentence}\n" for sentence in findings["verdict"]),
        "\n## Arms\n\n",
        arms_table(recipe, levels, findings["runs"]),
        "\nIntervals are 95 %, for other seeds and other texts.\n",
        "\n## Differences\n\nAbove 0, the arm is better than the control, seed by seed on the same tokens.\n\n",
        differences_table(differences),
    ]
    if replaced:
        lines += [
            "\n## Its own thoughts beside others\n\nWhat a trained model's thoughts are worth beside replacements, in nats "
            "a token.\n\n",
            markdown(
                ("arm", "in their place", "worth", "seeds"),
                [(each.arm, each.intervention, nats(each.estimate), str(each.n_seeds)) for each in replaced],
                n_left=2,
            ),
        ]
    lines += ["\n## Cost\n\n", cost_table(findings["runs"])]
    return "".join(lines)


def arms_table(recipe: dict[str, Any], levels: list[Level], runs: list[dict[str, Any]]) -> str:
    """Return the table of arms: what each is, its nll and its tasks, and figures of its thoughts."""
    places = list(dict.fromkeys(each.where for each in levels))
    rows = []
    for name, arm in recipe["arms"].items():
        by_where = {each.where: each for each in levels if each.arm == name}
        if not by_where:
            continue
        of_arm = [run for run in runs if run["arm"] == name]
        rows.append(
            (
                name,
                arm["about"],
                str(len(of_arm)),
                *(_level(by_where[where]) if where in by_where else "" for where in places),
                *(_mean([run["figures"].get(figure) for run in of_arm]) for figure in LOGGED),
            )
        )
    names = tuple(name.removeprefix("eval_").replace("_", " ") for name in LOGGED)
    return markdown(("arm", "what it is", "seeds", *places, *names), rows, n_left=2)


def _level(level: Level) -> str:
    estimate = level.estimate
    return f"{estimate.value:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""


def differences_table(differences: list[Difference]) -> str:
    """Return the table of differences."""
    rows = [(each.arm, each.control, each.where, nats(each.estimate), str(each.n_seeds)) for each in differences]
    return markdown(("arm", "control", "where", "better by", "seeds"), rows, n_left=3)


def cost_table(runs: list[dict[str, Any]]) -> str:
    """Return the table of what each run took, counted and measured, and what a token takes afterwards."""
    rows = []
    base = next(run["seconds_a_token"] for run in runs if run["arm"] == "base")
    for run in runs:
        pflop = run["n_steps"] * run["step_flops"] / 1e15
        rows.append(
            (
                run["arm"],
                "" if run["seed"] is None else str(run["seed"]),
                f"{run['n_steps']:,}" if run["n_steps"] else "",
                f"{run['chosen_step']:,}" if run["n_steps"] else "",
                f"{pflop:.3g}" if pflop else "",
                f"{run['train_seconds']:,.0f}" if run["n_steps"] else "",
                f"{pflop * 1e6 / run['train_seconds']:.3g}" if run["train_seconds"] else "",
                f"{run['passes_a_token']:g}",
                f"{run['seconds_a_token'] / base:.3g}",
            )
        )
    headings = (
        "arm",
        "seed",
        "steps",
        "chosen",
        "PFLOP",
        "seconds",
        "GFLOP/s",
        "passes a token",
        "times base to score",
    )
    return markdown(headings, rows)
