"""Two processes under DeepSpeed ZeRO-3 learn what one learns, and go on bit by bit."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from quietstar import objective
from quietstar.errors import BadStepsError
from quietstar.output import QuietStarOutput
from tests.long import mostly_long
from tests.several import Pair
from tests.training.test_several import CASES, learn
from tests.training.test_trainer import LENGTHS, rows, with_thoughts

deepspeed = pytest.importorskip("deepspeed", reason="deepspeed is not installed (extra: deepspeed)")


def learn_under_zero3(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """`learn`, launched as recipes/accelerate/zero3.yaml has it, on CPUs."""
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    }
    return learn(*args, **kwargs)


ROUNDING = ("gpt2", "balanced, adapters of branches")
"""cases in which some gradients are nothing but rounding, of keys' biases, or of a row of the LM head"""
FROZEN_HEAD = dict(model=dict(policy_weight="balanced:0.5", branch_adapters={"r": 4}, lora={"r": 4}))
ZERO3_CASES = {name: how for name, how in CASES.items() if name not in ROUNDING} | {"balanced, adapters": FROZEN_HEAD}


@pytest.mark.parametrize(
    "case", mostly_long(ZERO3_CASES, ["plain", "balanced, adapters", "a reference, policy epochs"])
)
def test_two_processes_learn_what_one_learns(pair: Pair, tmp_path: Path, case: str):
    """Adam moves a parameter by its learning rate where its gradient is hardly above rounding: its steps are small."""
    texts, how = with_thoughts(rows(*LENGTHS)), dict(optim="adamw_torch", learning_rate=1e-3) | ZERO3_CASES[case]
    alone = learn(tmp_path / "one", texts, 1, **how)
    for ours in pair(learn_under_zero3, tmp_path / "zero3", texts, 2, **how):
        assert ours["wrapped"] == "DeepSpeedEngine"
        assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert [line["grad_norm"] for line in ours["log"] if "loss" in line] == pytest.approx(
            [line["grad_norm"] for line in alone["log"] if "loss" in line], rel=1e-4
        )
        for name, value in alone["parameters"].items():
            torch.testing.assert_close(ours["parameters"][name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_a_run_resumes_bit_by_bit(pair: Pair, tmp_path: Path):
    how = dict(optim="adamw_torch", logging_steps=3, save_strategy="steps", save_steps=4, save_total_limit=9)
    texts = rows(*LENGTHS, *LENGTHS)
    straight = pair(learn_under_zero3, tmp_path / "straight", texts, 2, max_steps=7, **how)
    stopped = str(tmp_path / "straight" / "checkpoint-4")
    resumed = pair(learn_under_zero3, tmp_path / "resumed", texts, 2, max_steps=7, resumed_from=stopped, **how)
    for ours, theirs in zip(resumed, straight, strict=True):
        for name, value in theirs["parameters"].items():
            assert torch.equal(ours["parameters"][name], value), name
        assert ours["losses"] == theirs["losses"]


def learn_from_a_bad_batch(*args: Any, **kwargs: Any) -> str:
    right, calls = objective.fill_in_losses, []

    def broken(output: QuietStarOutput, *of: Any, **how: Any) -> None:
        right(output, *of, **how)
        calls.append(1)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            output.loss = output.loss * float("nan")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quietstar.taught.fill_in_losses", broken)
        try:
            learn_under_zero3(*args, **kwargs)
        except BadStepsError as error:
            return str(error)
    return ""


def test_a_loss_that_is_not_finite_stops_the_run_on_all_processes(pair: Pair, tmp_path: Path):
    """DeepSpeed steps in its backward pass, so that a step cannot be skipped after it."""
    texts = with_thoughts(rows(*LENGTHS))
    told = pair(learn_from_a_bad_batch, tmp_path, texts, 2, gradient_accumulation_steps=1, optim="adamw_torch")
    assert all("the loss is not finite at step 2" in each and "DeepSpeed" in each for each in told)
