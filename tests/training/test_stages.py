"""A curriculum is the stages run by hand, each from the best model of the one before; it can be killed anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from quietstar import QuietStarForCausalLM
from quietstar.errors import SettingsError
from quietstar.training import DataArguments, QuietStarTrainingArguments
from quietstar.training.curriculum import CurriculumArguments
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training
from quietstar.training.stages import dry_run_of_stages, run_curriculum
from quietstar.training.trainer import QuietStarTrainer

OPTIONS: dict[str, Any] = dict(
    per_device_train_batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=1e-2,
    warmup_steps=1,
    policy_weight=1.0,
    eval_steps=2,
    save_steps=2,
    logging_steps=1,
    thoughts_shown=0,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
STAGES = dict(curriculum="5:2,4:2", curriculum_steps="4,4", curriculum_learning_rates="5e-2,1e-2")


def pieces(inputs: Path, folder: Path, **settings: Any) -> tuple[Any, Any, Any]:
    model = {name: settings.pop(name) for name in ("model", "lora", "merge") if name in settings}
    return (
        ModelArguments(**({"model": str(inputs / "base")} | model)),
        DataArguments(dataset=str(inputs / "texts"), eval_size=4, max_length=12, streaming=False),
        QuietStarTrainingArguments(output_dir=str(folder), **(OPTIONS | settings)),
    )


def stages(inputs: Path, folder: Path, callbacks: Any = (), of: dict[str, Any] | None = None, **settings: Any) -> Any:
    return run_curriculum(
        *pieces(inputs, folder, **settings), CurriculumArguments(**(of or STAGES)), callbacks=callbacks
    )


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a curriculum that was not interrupted."""
    folder = tmp_path_factory.mktemp("curriculum") / "run"
    with pytest.MonkeyPatch.context() as patch:  # as for every single test
        patch.setattr("quietstar.attention.split.FEW_BRANCHES", 0)
        stages(inputs, folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(ours: Path, theirs: Path) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_stages_are_runs_that_could_be_made_by_hand(inputs: Path, whole: Path, tmp_path: Path) -> None:
    chosen = dict(
        load_best_model_at_end=True, metric_for_best_model="eval_talk_nll_0", greater_is_better=False, n_ahead_talk=2
    )
    run_training(*pieces(inputs, tmp_path / "a", n_ahead=5, max_steps=4, **(chosen | {"learning_rate": 5e-2})))
    assert_same(tmp_path / "a", whole / "stage-1")
    run_training(
        *pieces(inputs, tmp_path / "b", model=str(tmp_path / "a"), n_ahead=4, max_steps=4, data_seed=43, **chosen)
    )
    assert_same(tmp_path / "b", whole / "stage-2")
    assert_same(tmp_path / "b", whole)
    model = QuietStarForCausalLM.from_pretrained(whole)
    assert (model.config.n_ahead, model.config.n_ahead_talk) == (4, 2)


def test_the_next_stage_begins_with_the_best_model_not_the_last(whole: Path) -> None:
    """The first stage's learning rate is so high that the held-out text gets worse."""
    first = {line["step"]: line["eval_talk_nll_0"] for line in lines(whole / "stage-1") if "eval_talk_nll_0" in line}
    best = min((nll, step) for step, nll in first.items() if step)
    assert best[1] < 4, first
    begins = next(line["eval_base_nll"] for line in lines(whole / "stage-2") if "eval_nll" in line)
    left = {line["step"]: line["eval_base_nll"] for line in lines(whole / "stage-1") if "eval_nll" in line}
    assert begins == pytest.approx(left[best[1]])
    assert begins != pytest.approx(left[4])


def test_figures_say_their_stage(whole: Path) -> None:
    assert {(line["stage"], line["n_ahead"]) for line in lines(whole)} == {(1, 5), (2, 4)}
    figures = json.loads((whole / "results.json").read_text())
    last = json.loads((whole / "stage-2" / "results.json").read_text())
    assert figures["stages"].keys() == {"stage-1", "stage-2"}
    relative = ("eval_nll_before", "eval_drift", "eval_gain")
    own = {name: value for name, value in last.items() if not name.startswith(relative)}
    assert {name: figures[name] for name in own} == own
    assert figures.keys() == own.keys() | {"stages", "eval_nll_before"}
    assert figures["eval_nll_before"] == lines(whole / "stage-1")[0]["eval_nll_before"]
    assert json.loads((whole / "run.json").read_text())["stages"][0]["n_ahead"] == 5
    assert not list(whole.rglob("checkpoint-*"))


class Stop(TrainerCallback):
    """Kills a run after some of its steps."""

    def __init__(self, n_steps: int) -> None:
        self.left = n_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("n_steps", [1, 3, 4, 5, 7, 8])
def test_killed_after_any_step_it_goes_on_bit_by_bit(inputs: Path, whole: Path, tmp_path: Path, n_steps: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        stages(inputs, tmp_path / "run", [Stop(n_steps)])
    stages(inputs, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole)
    times = ("runtime", "per_second", "total_flos", "seconds")

    def figures(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if not any(time in k for time in times)} for line in lines(folder)]

    assert figures(tmp_path / "run") == figures(whole)


def test_killed_before_the_last_model_is_in_place(
    inputs: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("quietstar.training.stages.gather", stopped)
        with pytest.raises(KeyboardInterrupt):
            stages(inputs, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    stages(inputs, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole)


def test_another_curriculum_does_not_go_on(inputs: Path, whole: Path, tmp_path: Path) -> None:
    for changed, told in (
        ({"of": STAGES | {"curriculum": "5:2,3:2"}}, "curriculum is '5:2,3:2' and was '5:2,4:2'"),
        ({"of": STAGES | {"curriculum_keep_optimizer": True}}, "curriculum_keep_optimizer is True and was False"),
        ({"seed": 7}, "seed is 7 and was 42"),
        ({"policy_weight": 2.0}, "policy_weight is 2.0 and was 1.0"),
        ({"lora": True}, "lora is True and was False"),
    ):
        with pytest.raises(SettingsError, match=told):
            stages(inputs, whole, resume=True, **changed)
    with pytest.raises(
        SettingsError, match="already has a run; give --resume to go on with it, another folder, or --overwrite"
    ):
        stages(inputs, whole)
    with pytest.raises(SettingsError, match="has a curriculum; give it again, or another output_dir"):
        run_training(*pieces(inputs, whole, resume=True, n_ahead=5, n_ahead_talk=2, max_steps=6))
    run_training(*pieces(inputs, tmp_path / "plain", n_ahead=4, max_steps=2))
    with pytest.raises(SettingsError, match="has no run with a curriculum"):
        stages(inputs, tmp_path / "plain", resume=True)


class Moments(TrainerCallback):
    """Notes the optimizer's moments and learning rates when a run begins."""

    def __init__(self) -> None:
        self.found: list[tuple[float, list[float]]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        moments = [float(each["exp_avg"].norm()) for each in optimizer.state.values() if "exp_avg" in each]
        self.found.append((sum(moments), [group["lr"] for group in optimizer.param_groups]))


@pytest.mark.parametrize("keeps", [False, True])
def test_the_optimizer_begins_anew_unless_it_is_kept(inputs: Path, tmp_path: Path, keeps: bool) -> None:
    seen = Moments()
    stages(inputs, tmp_path / "run", [seen], of=STAGES | {"curriculum_keep_optimizer": keeps})
    (first, _), (second, rates) = seen.found
    assert first == 0
    assert (second > 0) == keeps
    assert set(rates) == {0.0}, "the learning rate warms up again"
    assert not list((tmp_path / "run").rglob("checkpoint-*"))


def test_each_stage_reads_its_rows_in_another_order(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    compute = QuietStarTrainer.compute_loss

    def noted(self: Any, model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            seen.append(batch["input_ids"].flatten().tolist())
        return compute(self, model, batch, *args, **kwargs)

    monkeypatch.setattr(QuietStarTrainer, "compute_loss", noted)
    stages(inputs, tmp_path / "run")
    assert len(seen) == 8
    assert seen[:4] != seen[4:]


def test_a_stage_that_a_health_check_ends_is_the_last(inputs: Path, tmp_path: Path) -> None:
    ill = {"learning_rate": 3.0, "stop_when_unhealthy": True}
    of = {"curriculum": "5:2,4:2", "curriculum_steps": "9"}
    stages(inputs, tmp_path / "run", of=of, **ill)
    assert not (tmp_path / "run" / "stage-2").exists()
    assert_same(tmp_path / "run", tmp_path / "run" / "stage-1")
    assert {line["stage"] for line in lines(tmp_path / "run")} == {1}


def test_what_is_said_at_the_end_compares_with_the_model_before_the_first_stage(inputs: Path, whole: Path) -> None:
    figures = stages(inputs, whole, resume=True)
    assert figures["eval_nll_before"] == lines(whole / "stage-1")[0]["eval_nll_before"]
    assert figures["eval_base_nll"] == json.loads((whole / "results.json").read_text())["eval_base_nll"]


def test_adapters_go_through_all_stages_and_are_merged_at_the_end(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    stages(inputs, tmp_path / "run", lora=True, merge=True)
    before, after = weights(tmp_path / "run" / "stage-1"), weights(tmp_path / "run")
    assert any(".lora_" in name for name in before)
    assert not any(".lora_" in name for name in after)


def test_a_dry_run_is_of_every_stage(inputs: Path, tmp_path: Path) -> None:
    found = dry_run_of_stages(*pieces(inputs, tmp_path / "run", dry_run=True), CurriculumArguments(**STAGES))
    assert [line.split(":")[0] for line in found[:2]] == ["stage 1 of 2", "stage 2 of 2"]
    assert "; 4 steps would take about" in found[0]
    assert found[2].startswith("all stages would take about ")
    assert not (tmp_path / "run").exists()
