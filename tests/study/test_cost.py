"""The cost of arms: what thoughts add, and what a control leaves out."""

from pathlib import Path

import pytest

from quietstar.cli.train import train_parser
from quietstar.study.arms import READY
from quietstar.study.commands import command_of
from quietstar.study.cost import step_flops
from tests.study.tiny_study import tiny_recipe


def flops_of(where: Path, arm: str, **changed: object) -> float:
    recipe = tiny_recipe(where, **changed)
    return step_flops(command_of(recipe, READY[arm], 0, where / "run", train_parser()))


def test_thoughts_cost_more_than_filler_and_filler_more_than_none(tmp_path: Path) -> None:
    plain, filler, quietstar = (flops_of(tmp_path, arm) for arm in ("finetune", "filler", "quietstar"))
    assert plain < filler < quietstar
    options = {"n_ahead": 4, "n_ahead_talk": 2, "head_learning_rate": 1e-2}
    assert flops_of(tmp_path, "quietstar", thinking={**options, "think_tokens": 1}) < quietstar
    assert flops_of(tmp_path, "quietstar", thinking=options) > 1.5 * quietstar


def test_a_moving_average_adds_its_base_pass(tmp_path: Path) -> None:
    ema = {"like": "quietstar", "reference": "ema"}
    recipe = tiny_recipe(tmp_path, arms={"quietstar": None, "ema": ema})
    own, other = (
        step_flops(command_of(recipe, recipe.arms[arm], 0, tmp_path / "run", train_parser()))
        for arm in ("quietstar", "ema")
    )
    plain = flops_of(tmp_path, "finetune")
    assert other - own == pytest.approx(plain / 3, rel=0.25)


def test_rows_and_accumulation_multiply(tmp_path: Path) -> None:
    once = flops_of(tmp_path, "finetune")
    options = {"max_length": 24, "use_cpu": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    assert flops_of(tmp_path, "finetune", options=options) == pytest.approx(6 * once)
