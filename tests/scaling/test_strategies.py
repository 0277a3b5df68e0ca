"""Gathers are those of FSDP2, and the GPUs' shards add up."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from quietstar.scaling.memory import Numbers
from quietstar.scaling.shape import shape_of
from quietstar.scaling.step import Step
from quietstar.scaling.strategies import (
    DDP,
    FSDP2,
    FSDP2_OFFLOAD,
    ONE,
    ZERO3,
    gathers_of_a_layer,
    held_by,
    traffic,
)
from tests.tiny import texts, tiny_base, tiny_model

SHAPE = shape_of(tiny_base("llama").config)
ADAPTED = replace(SHAPE, lora={"r": 4}, n_adapters=1000)
FLOAT32, BFLOAT16 = Numbers(weights=torch.float32, autocast=False), Numbers(weights=torch.bfloat16, autocast=True)
STEP = Step(B=2, S=16, n_ahead=5, M=2)


@pytest.fixture
def two_processes():
    """Return a group of this process and an idle one, whose collectives move nothing."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def sharded(mesh, **settings):
    """Return a tiny model sharded by FSDP2."""
    model = tiny_model("llama", n_ahead=STEP.n_ahead, n_ahead_talk=STEP.M, **settings).train()
    for layer in model.base_lm.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
def test_layers_are_gathered_so_often(two_processes, monkeypatch, checkpointing):
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as group

    calls: Counter = Counter()

    def counted(name):
        own = getattr(group, name)

        def call(parameters, *args, **kwargs):
            calls[name] += any("model.layers" in (of._param_fqn or "") for of in parameters)
            return own(parameters, *args, **kwargs)

        monkeypatch.setattr(group, name, call)

    counted("foreach_all_gather")
    counted("foreach_reduce")
    model = sharded(two_processes)
    layers = model.base_lm.model.layers
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**texts(STEP.S, STEP.S), loss_only=True).loss.backward()
    step = replace(STEP, checkpointing=checkpointing, sharded=True)
    expected = len(layers) * gathers_of_a_layer(step, len(layers))
    # a layer that was prefetched and not used is gathered again
    assert expected <= calls["foreach_all_gather"] <= expected + 1
    assert calls["foreach_reduce"] == len(layers), "gradients are summed over all passes before they are spread"


def test_gradients_lie_whole_between_batches(two_processes):
    """As in the trainer, gradients are only reduced with the last batch."""
    model = sharded(two_processes)

    def whole() -> int:
        groups = [
            module._get_fsdp_state()._fsdp_param_group for module in model.modules() if isinstance(module, FSDPModule)
        ]
        parameters = [of._unsharded_param for group in groups for of in group.fsdp_params]
        return sum(of.grad.nbytes for of in parameters if of.grad is not None)

    for last in (False, True):
        model.set_requires_gradient_sync(last)
        model(**texts(STEP.S, STEP.S), loss_only=True).loss.backward()
        held, _ = held_by(SHAPE, FLOAT32, FSDP2, 2, accumulation=2)
        assert whole() == (0 if last else held.earlier_gradients)


@pytest.mark.parametrize(("strategy", "n_gpus"), [(ONE, 1), (DDP, 8), (FSDP2, 8), (FSDP2_OFFLOAD, 8)])
def test_a_second_batch_finds_the_gradients_of_the_first(strategy, n_gpus):
    one, two, many = (held_by(SHAPE, BFLOAT16, strategy, n_gpus, accumulation=n)[0] for n in (1, 2, 8))
    assert one.earlier_gradients == 0
    assert two.earlier_gradients == many.earlier_gradients >= 2 * SHAPE.n_base
    assert two.last_gradients >= one.last_gradients


def test_zero3_reduces_the_gradients_of_each_batch():
    held, _ = held_by(SHAPE, BFLOAT16, ZERO3, 8, accumulation=2)
    assert held.earlier_gradients == 4 * SHAPE.n_trained / 8
    few, many = (traffic(SHAPE, STEP, BFLOAT16, ZERO3, 8, n) for n in (1, 3))
    assert many.gradients == 3 * few.gradients


def test_one_gpu_holds_everything_and_receives_nothing():
    held, host = held_by(SHAPE, FLOAT32, ONE, 1)
    n = SHAPE.n_base + SHAPE.n_small
    assert (held.weights, held.optimizer, held.last_gradients) == (4 * n, 8 * n, 4 * n)
    assert host == held.gathered == traffic(SHAPE, STEP, FLOAT32, ONE, 1).total == 0


def test_ddp_holds_as_much_and_averages_all_gradients():
    alone, ddp = held_by(SHAPE, FLOAT32, ONE, 1)[0], held_by(SHAPE, FLOAT32, DDP, 8)[0]
    assert (ddp.weights, ddp.optimizer) == (alone.weights, alone.optimizer)
    assert ddp.gradients == alone.last_gradients, "buckets"
    moved = traffic(SHAPE, STEP, FLOAT32, DDP, 8, accumulation=4)
    assert moved.total == 2 * 7 / 8 * alone.last_gradients


@pytest.mark.parametrize("strategy", [FSDP2, ZERO3], ids=lambda of: of.name)
@pytest.mark.parametrize("numbers", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [SHAPE, ADAPTED], ids=["full", "lora"])
def test_shards_of_all_gpus_add_up(strategy, numbers, shape):
    one, eight = held_by(shape, numbers, strategy, 1)[0], held_by(shape, numbers, strategy, 8)[0]
    for name in ("weights", "optimizer"):
        assert 8 * getattr(eight, name) == pytest.approx(getattr(one, name))
    assert eight.layer_gradients == one.layer_gradients, "summed on each GPU before they are spread"


def test_offload_leaves_shares_to_the_host():
    there, none = held_by(SHAPE, BFLOAT16, FSDP2, 8)
    held, host = held_by(SHAPE, BFLOAT16, FSDP2_OFFLOAD, 8)
    assert none == held.weights == held.optimizer == 0
    assert host == pytest.approx(there.weights + there.optimizer * 1.5)
    assert held.gathered == there.gathered > 0
    assert traffic(SHAPE, STEP, BFLOAT16, FSDP2_OFFLOAD, 8).host > 0


def test_thinking_gathers_layers_more_often_than_a_plain_step():
    plain = gathers_of_a_layer(replace(STEP, fraction=0.0), 2)
    assert plain == 2
    assert gathers_of_a_layer(STEP, 2) == 2 * (STEP.K + 2)
    few, many = (traffic(SHAPE, STEP, FLOAT32, FSDP2, 2, n) for n in (1, 3))
    assert many.weights == 3 * few.weights
    assert many.gradients == few.gradients


def test_weights_in_four_bits_take_a_quarter():
    plain, packed = (held_by(ADAPTED, BFLOAT16, ONE, 1, four_bit)[0].weights for four_bit in (False, True))
    assert plain - packed == pytest.approx(SHAPE.n_matrices * (2 - 4.127 / 8), rel=1e-3)
