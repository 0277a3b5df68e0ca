"""Sizes are those of the named models."""

import pytest
import torch
from transformers import AutoConfig

from quietstar import QuietStarForCausalLM
from quietstar.base.lora import add_lora
from quietstar.errors import CheckpointError, SettingsError, UnsupportedModelError
from quietstar.scaling import shape
from quietstar.scaling.shape import PUBLISHED, read_config, shape_of
from tests.tiny import FAMILIES, tiny_base
from tests.tiny_tokenizer import tiny_folder

DENSE = [name for name in FAMILIES if "mixtral" not in name]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-0.6B-Base", 0.596),
        ("mistralai/Mistral-7B-v0.1", 7.24),
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("meta-llama/Meta-Llama-3-70B", 70.55),
    ],
)
def test_published_models_have_their_published_weights(name, billions):
    found = shape_of(read_config(name), name)
    assert found.n_base / 1e9 == pytest.approx(billions, abs=0.005)
    assert found.dtype == torch.bfloat16
    assert name in PUBLISHED


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("lora", [None, {"r": 3}], ids=["full", "lora"])
def test_parameters_are_those_of_a_real_model(family, lora):
    if lora:
        pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    model = QuietStarForCausalLM.from_base(tiny_base(family), lora=lora)
    found = shape_of(AutoConfig.for_model(family.split("-")[0], **FAMILIES[family]), lora=lora)
    parameters = list(model.parameters())
    assert found.n_base + found.n_small == sum(of.numel() for of in parameters)
    assert found.n_trained == sum(of.numel() for of in parameters if of.requires_grad)
    assert found.n_small == sum(of.numel() for of in parameters if of.requires_grad) or lora is None
    assert found.n_root + found.n_matrices + found.n_norms == found.n_base


def test_a_thinking_model_has_its_base_models_sizes(tmp_path):
    base = tiny_folder(tmp_path / "base")
    QuietStarForCausalLM.from_base(str(base)).save_pretrained(tmp_path / "thinking")
    sizes = [shape_of(read_config(str(folder))) for folder in (base, tmp_path / "thinking")]
    assert sizes[0].n_base == sizes[1].n_base
    assert sizes[0].n_matrices == sizes[1].n_matrices


TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("llama", dict(num_hidden_layers=0), "has 0 layers"),
        ("mamba", dict(vocab_size=64, hidden_size=32, num_hidden_layers=2), "has convolutions in its layers"),
        ("bert", {}, "is an encoder"),
        ("llama", dict(quantization_config={"quant_method": "awq"}), "are quantized .quantization_config: awq."),
        ("gemma3", dict(text_config=TINY, vision_config=dict(num_hidden_layers=1)), "weights outside its text model"),
        ("mistral3", {}, "is not a decoder-only language model"),
    ],
    ids=lambda of: of if isinstance(of, str) else "",
)
def test_models_that_the_formulas_do_not_cover_are_refused(family, settings, told):
    tiny = {} if family in ("mamba", "gemma3", "mistral3") else TINY
    with pytest.raises(UnsupportedModelError, match=told):
        shape_of(AutoConfig.for_model(family, **{**tiny, **settings}), "mine")


def test_heads_of_other_sizes_than_the_config_says_are_refused():
    sizes = {name: value for name, value in TINY.items() if name != "head_dim"} | dict(num_key_value_heads=4)
    config = AutoConfig.for_model("deepseek_v3", first_k_dense_replace=2, **sizes)
    with pytest.raises(UnsupportedModelError, match="has heads of size 192 for queries and 128 for values"):
        shape_of(config, "mine").kept(torch.float32, autocast=False)


def test_a_model_that_does_not_run_is_refused_in_one_line(capfd):
    sizes = dict(vocab_size=64, hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=2, ffn_dim=48)
    config = AutoConfig.for_model("opt", num_attention_heads=4, do_layer_norm_before=False, **sizes)
    with pytest.raises(UnsupportedModelError, match=r"cannot count .*; plan with a dense model") as told:
        shape_of(config).kept(torch.float32, autocast=False)
    assert "\n" not in str(told.value)
    assert capfd.readouterr().err == ""


def test_adapters_that_cannot_be_counted_are_refused():
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    config = AutoConfig.for_model("gemma3n_text", vocab_size=64, hidden_size=32, num_hidden_layers=30)
    with pytest.raises(UnsupportedModelError, match="cannot count adapters of family 'gemma3n_text'"):
        shape_of(config, lora={"r": 2})


def test_adapters_take_no_memory(monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    made = []
    monkeypatch.setattr(shape, "add_lora", lambda model, lora: made.append((add_lora(model, lora), model)))
    assert shape_of(AutoConfig.for_model("llama", **TINY), lora={"r": 100_000}).n_adapters > 9e7
    assert all(parameter.is_meta for _, model in made for parameter in model.parameters())


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
