"""The choice of a plan, and how it eases a run that does not fit."""

from dataclasses import replace

import pytest

from quietstar.errors import SettingsError
from quietstar.scaling import shape
from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.plan import easings, plan
from quietstar.scaling.tables import choice, notes

QWEN, LLAMA = "Qwen/Qwen3-0.6B-Base", "meta-llama/Meta-Llama-3-70B"


def test_weights_in_four_bits_before_offload():
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    found = plan(PlanArguments(model=LLAMA, memory=80))
    assert found.chosen_args == replace(found.args, lora=True, load_in_4bit=True)
    assert not found.chosen.strategy.offloads


@pytest.mark.parametrize(
    "asked",
    [{}, dict(lora=True), dict(lora=True, load_in_4bit=True), dict(think_fraction=0.0), dict(max_length=1024)],
    ids=str,
)
def test_each_easing_is_another_run_and_asks_for_less(asked):
    args = PlanArguments(per_device_train_batch_size=4, **asked)
    tried = list(easings(args))
    assert tried[0] == args
    assert all(tried.count(of) == 1 for of in tried)
    for of in tried[1:]:
        assert of.per_device_train_batch_size * of.gradient_accumulation_steps == 32
        assert of.per_device_train_batch_size == 1
        assert of.think_fraction <= args.think_fraction
        assert of.max_length <= args.max_length
        assert of.lora >= of.load_in_4bit >= args.load_in_4bit
    assert tried[-1].load_in_4bit


def test_four_bits_in_shards_are_for_who_asks_for_them():
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    few = PlanArguments(model=LLAMA, gpus=4, memory=24)
    found = plan(few)
    assert found.chosen.strategy.offloads
    assert not found.chosen_args.load_in_4bit
    asked = plan(replace(few, lora=True, load_in_4bit=True))
    assert asked.chosen.strategy.shards


def test_adapters_are_counted_only_where_they_are_needed(monkeypatch):
    monkeypatch.delattr(shape, "add_lora")
    assert plan(PlanArguments(model=QWEN)).chosen is not None


def test_weights_that_train_are_counted_in_float32_and_frozen_ones_as_they_are_stored():
    """Weights are loaded as in `quietstar train`."""
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    for settings, size in (
        (dict(), 4),
        (dict(dtype="bfloat16"), 2),
        (dict(lora=True), 2),
        (dict(lora=True, dtype="float32"), 4),
    ):
        found = plan(PlanArguments(model=QWEN, **settings))
        assert found.args.numbers(found.shape).weight_size == size, settings


def test_gradients_of_earlier_batches_take_memory():
    """They are whole on each GPU, except under DeepSpeed."""
    one, many = (plan(PlanArguments(model=QWEN, gpus=8, gradient_accumulation_steps=n)) for n in (1, 8))
    for few, more in zip(one.ways, many.ways, strict=True):
        each = {"ZeRO-3": 4 / 8, "DDP": 4}.get(few.strategy.name, 2)
        more_bytes = more.moment.total - few.moment.total
        assert more_bytes == pytest.approx(each * one.shape.n_base, rel=0.3), few.strategy.name


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_moving_average_takes_memory_for_what_trains(lora, device):
    """Four bytes for each weight that trains, on each GPU or a share of them, or on the host."""
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    args = PlanArguments(model=QWEN, gpus=4, lora=lora)
    found = plan(args), plan(replace(args, reference="ema", ema_device=device))
    n_trained = found[0].shape.n_trained
    for without, beside in zip(found[0].ways, found[1].ways, strict=True):
        size = 4 * n_trained / (4 if without.strategy.shards else 1)
        on_host = without.strategy.offloads or device == "cpu"
        assert beside.host - without.host == pytest.approx(size if on_host else 0)
        assert beside.moment.optimizer - without.moment.optimizer == pytest.approx(0 if on_host else size)


def test_a_curriculum_is_planned_for_the_stage_that_takes_most():
    found = plan(PlanArguments(model=QWEN, curriculum="8:4,16:8,12:4"))
    alone = plan(PlanArguments(model=QWEN, n_ahead=16, n_ahead_talk=8))
    assert found.nearest.moment.total == alone.nearest.moment.total
    assert found.stages[1].total == max(each.total for each in found.stages)
    said = " ".join(notes(found))
    assert "the stage with n_ahead 16 and n_ahead_talk 8, which takes most memory" in said
    assert "1.00" in said
    line = list(choice(found))[-1]
    assert "--curriculum 8:4,16:8,12:4" in line
    assert "--n_ahead" not in line


def test_lengths_beside_a_curriculum_are_refused():
    with pytest.raises(SettingsError, match="n_ahead and n_ahead_talk are those of the curriculum's stages"):
        PlanArguments(model=QWEN, curriculum="8:4", n_ahead=8)
    with pytest.raises(SettingsError, match="curriculum has stage '8'"):
        PlanArguments(model=QWEN, curriculum="8")
