"""The activation memory of fake layers equals that of real ones."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig

from quietstar.errors import UnsupportedModelError
from quietstar.scaling.kept import count_kept
from tests.tiny import FAMILIES, tiny_base

DENSE = [name for name in FAMILIES if "mixtral" not in name and name != "gemma2"]
"""families without experts and without attention that keeps its scores"""


def config_of(family: str) -> AutoConfig:
    return AutoConfig.for_model(family.split("-")[0], **FAMILIES[family])


def test_llamas_layer_in_closed_form():
    D, H, J, d, I = 32, 4, 2, 8, 48  # noqa: E741
    single, half = (count_kept(config_of("llama"), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert single.layer == 4 * (6 * D + 2 * H * d + 2 * J * d + 4 * I + H + 2)
    assert half.layer == 16 * D + 2 * (2 * H * d + 2 * J * d + 4 * I) + 4 * (H + 2)
    assert single.rest == 4 * (2 * D + 2 * d + 1)
    assert single.copies == half.copies == 0


@pytest.mark.parametrize("family", DENSE)
def test_two_layers_keep_twice_what_one_adds(family):
    """The count equals the memory that a real base pass of two layers keeps, with attention."""
    base_lm = tiny_base(family).train()
    kept: dict[int, int] = {}
    storages = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages.append(storage)
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    T = 96
    embeds = torch.randn(1, T, base_lm.config.hidden_size, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        base_lm.base_model(inputs_embeds=embeds, use_cache=False)
    for of in (*base_lm.parameters(), *base_lm.buffers()):
        kept.pop(of.untyped_storage().data_ptr(), None)
    counted = count_kept(config_of(family), torch.float32)
    expected = T * (2 * counted.layer + counted.rest) + 2 * counted.copies
    # window masks and repeated heads belong to the base model's own attention
    assert expected == pytest.approx(sum(kept.values()), rel=0.35)
    assert expected <= 1.02 * sum(kept.values())


def test_autocast_keeps_copies_of_weights_for_any_number_of_tokens():
    plain = count_kept(config_of("llama"), torch.float32)
    cast = count_kept(config_of("llama"), torch.float32, autocast=True)
    D, J, d, I = 32, 2, 8, 48  # noqa: E741
    assert cast.copies == 2 * (2 * D * D + 2 * D * J * d + 3 * D * I)
    assert cast.layer < plain.layer


def test_adapters_keep_less_of_frozen_weights_and_their_own_states():
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    alone, few, many = (count_kept(config_of("llama"), torch.float32, lora=lora) for lora in (None, {"r": 1}, {"r": 5}))
    assert many.layer - few.layer == 4 * 4 * 7, "the states of seven adapters, four ranks more"
    assert few.layer < alone.layer


def test_experts_are_refused():
    with pytest.raises(UnsupportedModelError, match="cannot count the activation memory of a layer"):
        count_kept(config_of("mixtral"), torch.float32)
