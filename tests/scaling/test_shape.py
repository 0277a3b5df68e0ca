"""Sizes are those of the models that they name."""

import pytest
import torch
from transformers import AutoConfig

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError, SettingsError, UnsupportedModelError
from quietstar.scaling.shape import PUBLISHED, read_config, shape_of
from tests.tiny import FAMILIES, tiny_base
from tests.tiny_tokenizer import tiny_folder

DENSE = [name for name in FAMILIES if "mixtral" not in name]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen/Qwen3-0.6B-Base", 0.596), ("mistralai/Mistral-7B-v0.1", 7.24), ("meta-llama/Meta-Llama-3-70B", 70.55)],
)
def test_published_models_have_their_published_weights(name, billions):
    shape = shape_of(read_config(name), name)
    assert shape.n_base / 1e9 == pytest.approx(billions, abs=0.005)
    assert shape.dtype == torch.bfloat16
    assert name in PUBLISHED


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("lora", [None, {"r": 3}], ids=["full", "lora"])
def test_parameters_are_those_of_a_real_model(family, lora):
    if lora:
        pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    model = QuietStarForCausalLM.from_base(tiny_base(family), lora=lora)
    shape = shape_of(AutoConfig.for_model(family.split("-")[0], **FAMILIES[family]), lora=lora)
    parameters = list(model.parameters())
    assert shape.n_base + shape.n_small == sum(of.numel() for of in parameters)
    assert shape.n_trained == sum(of.numel() for of in parameters if of.requires_grad)
    assert shape.n_small == sum(of.numel() for of in parameters if of.requires_grad) or lora is None
    assert shape.n_root + shape.n_matrices + shape.n_norms == shape.n_base


def test_a_thinking_model_has_its_base_models_sizes(tmp_path):
    base = tiny_folder(tmp_path / "base")
    QuietStarForCausalLM.from_base(str(base)).save_pretrained(tmp_path / "thinking")
    sizes = [shape_of(read_config(str(folder))) for folder in (base, tmp_path / "thinking")]
    assert sizes[0].n_base == sizes[1].n_base
    assert sizes[0].n_matrices == sizes[1].n_matrices


def test_what_cannot_be_counted_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="experts"):
        shape_of(AutoConfig.for_model("mixtral", **FAMILIES["mixtral"]))
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        read_config(str(tmp_path))
    with pytest.raises(SettingsError, match="model is empty"):
        read_config("")
    with pytest.raises(CheckpointError, match="no/such"):
        read_config("no/such")
