"""A whole tiny study: it can be stopped anywhere, run in parts, and put together, and no figure changes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from quietstar.cli.train import train_parser
from quietstar.errors import DataError, QuietStarError, SettingsError
from quietstar.study.arguments import StudyArguments
from quietstar.study.run import Study
from quietstar.study.whole import study
from tests.study.tiny_study import recipe_file

TIMES = ("seconds_a_token", "train_seconds", "command", "figures")
"""what differs from run to run, or names folders"""


def run(where: Path, **how: Any) -> list[str]:
    return list(study(str(where / "recipe.yaml"), StudyArguments(**how), train_parser()))


def figures(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "study.json").read_text())
    for each in found["runs"]:
        for name in TIMES:
            each.pop(name)
        each["report"] = each["report"] and each["report"].split("runs/")[-1]
    return found


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and the whole study in `whole`."""
    folder = tmp_path_factory.mktemp("study")
    recipe_file(folder)
    with pytest.MonkeyPatch.context() as patch:  # as for every single test
        patch.setattr("quietstar.attention.split.FEW_BRANCHES", 0)
        run(folder, output_dir=str(folder / "whole"))
    return folder


def test_a_study_has_every_run_and_every_file(where: Path) -> None:
    found = figures(where / "whole")
    runs = [(each["arm"], each["seed"]) for each in found["runs"]]
    trained = ["finetune-compute", "filler", "quietstar"]
    assert runs == [("base", None), ("base-sharpened", None), *((arm, seed) for seed in (0, 1) for arm in trained)]
    assert {each["arm"]: each["passes_a_token"] for each in found["runs"]} == dict(
        zip([*dict(runs)], [1.0, 1.0, 1.0, 3.0, 3.0], strict=True)
    )
    for name in ("study.md", "study.html"):
        text = (where / "whole" / name).read_text()
        assert all(sentence.split(":")[0] in text for sentence in found["verdict"])
    assert not list((where / "whole").rglob("checkpoint-*"))


def test_as_many_steps_as_the_dearest_thinking_arm_pays_for(where: Path) -> None:
    by_arm = {each["arm"]: each for each in figures(where / "whole")["runs"]}
    dearest = max(by_arm[arm]["n_steps"] * by_arm[arm]["step_flops"] for arm in ("filler", "quietstar"))
    plain = by_arm["finetune-compute"]
    assert abs(plain["n_steps"] * plain["step_flops"] - dearest) <= plain["step_flops"] / 2
    assert plain["n_steps"] > 2


def test_every_command_could_be_run_by_hand(where: Path) -> None:
    for each in json.loads((where / "whole" / "study.json").read_text())["runs"]:
        if each["seed"] is not None:
            assert each["command"].startswith("quietstar train --model=")
            assert f"--seed={each['seed']}" in each["command"]


def test_a_study_that_was_stopped_goes_on_to_the_same_figures(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between training and measuring, and again within a later run's training."""
    measure, n = Study.measure, [0]

    def stopped(self: Study, *given: Any) -> Any:
        n[0] += 1
        if n[0] in (4, 6):
            raise KeyboardInterrupt
        return measure(self, *given)

    monkeypatch.setattr(Study, "measure", stopped)
    (where / "stopped").mkdir()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(where, output_dir=str(where / "stopped"), resume=True)
    unfinished = where / "stopped" / "runs" / "filler" / "seed-1"
    assert not (unfinished / "measured.json").exists()
    run(where, output_dir=str(where / "stopped"), resume=True)
    assert figures(where / "stopped") == figures(where / "whole")


def test_parts_put_together_are_the_whole(where: Path) -> None:
    for seed in (0, 1):
        run(where, output_dir=str(where / f"part-{seed}"), seeds=[seed])
    run(where, output_dir=str(where / "together"), report=[str(where / "part-0"), str(where / "part-1")])
    assert figures(where / "together") == figures(where / "whole")
    with pytest.raises(SettingsError, match="is a second run of filler, seed 0; give each part once"):
        run(where, output_dir=str(where / "twice"), report=[str(where / "part-0"), str(where / "whole")])


def test_parts_of_other_recipes_are_refused(where: Path, tmp_path: Path) -> None:
    recipe_file(where, batch_size=4)
    try:
        with pytest.raises(
            SettingsError, match=r"holds a study with batch_size 3, and the recipe has 4; two recipes do"
        ):
            run(where, output_dir=str(tmp_path / "x"), report=[str(where / "whole")])
        with pytest.raises(SettingsError, match="holds a study with batch_size 3"):
            run(where, output_dir=str(where / "whole"), resume=True)
    finally:
        recipe_file(where)
    with pytest.raises(SettingsError, match="does not hold a study"):
        run(where, output_dir=str(tmp_path / "x"), report=[str(where / "base")])


def test_a_text_that_changed_under_its_name_is_noticed(tmp_path: Path) -> None:
    recipe_file(tmp_path, arms=["filler", "quietstar"])
    run(tmp_path, output_dir=str(tmp_path / "x"), seeds=[0])
    (tmp_path / "test.txt").write_text("".join(f"{n} and {n + 1} are {2 * n + 1}\n" for n in range(34, 40)))
    with pytest.raises(SettingsError, match="was measured on another text"):
        run(tmp_path, output_dir=str(tmp_path / "x"), resume=True)


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(tmp_path: Path) -> None:
    wild = {"like": "quietstar", "learning_rate": 1e38, "max_grad_norm": 0}
    recipe_file(tmp_path, arms={"wild": wild, "filler": None, "quietstar": None}, seeds=[0])
    told: list[str] = []
    for _ in range(2):
        with pytest.raises(QuietStarError, match="1 of the runs failed, and the report is of the others; change their"):
            told += study(
                str(tmp_path / "recipe.yaml"),
                StudyArguments(output_dir=str(tmp_path / "x"), resume=True),
                train_parser(),
            )
    found = figures(tmp_path / "x")
    assert [each["arm"] for each in found["runs"]] == ["base", "filler", "quietstar"]
    assert found["verdict"][-1].startswith("wild, seed 0: failed: the base model's own predictions are NaN")
    assert found["verdict"][-1] in (tmp_path / "x" / "study.md").read_text()


def test_a_task_that_cannot_be_read_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"question": "1 + 1?", "answer": "no marker"}\n')
    recipe_file(tmp_path, tasks={"gsm8k": str(tmp_path / "items.jsonl")})
    with pytest.raises(DataError):
        run(tmp_path, output_dir=str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_seeds_can_be_added(tmp_path: Path) -> None:
    recipe_file(tmp_path, arms=["filler", "quietstar"], seeds=[0])
    run(tmp_path, output_dir=str(tmp_path / "x"))
    recipe_file(tmp_path, arms=["filler", "quietstar"], seeds=[0, 1])
    run(tmp_path, output_dir=str(tmp_path / "x"), resume=True)
    assert [each["seed"] for each in figures(tmp_path / "x")["runs"]] == [None, 0, 0, 1, 1]


def test_arms_can_be_added(tmp_path: Path) -> None:
    recipe_file(tmp_path, arms=["filler"], seeds=[0])
    run(tmp_path, output_dir=str(tmp_path / "x"))
    recipe_file(tmp_path, arms=["filler", "finetune-compute", "quietstar"], seeds=[0])
    run(tmp_path, output_dir=str(tmp_path / "x"), resume=True)
    assert [each["arm"] for each in figures(tmp_path / "x")["runs"]] == [
        "base", "filler", "finetune-compute", "quietstar",
    ]  # fmt: skip
    more = {"filler": None, "finetune-compute": None, "quietstar": None, "long": {"like": "quietstar", "n_passes": 6}}
    recipe_file(tmp_path, arms=more, seeds=[0])
    with pytest.raises(SettingsError, match=r"finetune-compute, seed 0 took 11 steps, and with the arms that were"):
        run(tmp_path, output_dir=str(tmp_path / "x"), resume=True, arms=["long"])
    recipe_file(tmp_path, arms={"filler": {"n_ahead": 3}}, seeds=[0])
    with pytest.raises(SettingsError, match="holds a study with arms"):
        run(tmp_path, output_dir=str(tmp_path / "x"), resume=True)


def test_a_report_does_not_delete_what_it_reports(where: Path) -> None:
    with pytest.raises(SettingsError, match="which this run reads; give another output_dir"):
        run(where, output_dir=str(where / "whole"), report=[str(where / "whole")], overwrite=True)
    assert (where / "whole" / "runs").is_dir()


def test_the_base_alone_has_a_report(where: Path, tmp_path: Path) -> None:
    run(where, output_dir=str(tmp_path / "x"), arms=["base"])
    assert "No arm has been trained yet" in (tmp_path / "x" / "study.html").read_text()


def test_thoughts_of_plain_arms_are_refused_before_anything_runs(tmp_path: Path) -> None:
    recipe = {"max_length": 24, "max_steps": 2, "use_cpu": True, "n_ahead": 4}
    recipe_file(tmp_path, options=recipe)
    with pytest.raises(SettingsError, match="finetune-compute trains without thoughts, but n_ahead is among"):
        run(tmp_path, output_dir=str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_texts_that_share_rows_are_refused(tmp_path: Path) -> None:
    recipe_file(tmp_path)
    shared = (tmp_path / "train.txt").read_text().splitlines()[3]
    with (tmp_path / "test.txt").open("a") as file:
        file.write(f"{shared}\n")
    with pytest.raises(SettingsError, match=r"1 rows of .*test.txt are rows of .*train.txt, too"):
        run(tmp_path, output_dir=str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"arms": ["nobody"]}, "arms has nobody; choose from base"),
        ({"seeds": [7]}, "seeds has 7; choose from 0, 1"),
        ({}, "already has a run; give --resume to go on with it, another folder, or --overwrite"),
    ],
)
def test_what_cannot_be_run_is_refused_and_changes_nothing(where: Path, how: dict, message: str) -> None:
    before = (where / "whole" / "study.json").read_bytes()
    with pytest.raises(SettingsError, match=message):
        run(where, output_dir=str(where / "whole"), **how)
    assert (where / "whole" / "study.json").read_bytes() == before


def test_a_plan_says_what_each_arm_costs_and_runs_nothing(where: Path, tmp_path: Path) -> None:
    lines = run(where, output_dir=str(tmp_path / "none"), dry_run=True)
    arms = ["base", "base-sharpened", "finetune-compute", "filler", "quietstar"]
    assert [line.split(":")[0] for line in lines[:-1]] == arms
    number = r"[\d.e-]+"
    step = rf"2 steps of {number} TFLOP and {number} s on full rows, {number} seconds for each of 2 seeds"
    assert re.search(step, lines[-2])
    assert re.match(
        rf"together about {number} seconds of training, without evaluations and measuring, on cpu", lines[-1]
    )
    assert not (tmp_path / "none").exists()


def test_models_need_not_be_kept(where: Path, tmp_path: Path) -> None:
    shutil.copytree(where / "whole", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "runs" / "quietstar" / "seed-1")
    run(where, output_dir=str(tmp_path / "copy"), resume=True, keep_models=False)
    kept = sorted((tmp_path / "copy" / "runs" / "quietstar").rglob("*.safetensors"))
    assert [file.parent.name for file in kept] == ["seed-0"]
