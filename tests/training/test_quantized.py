"""Adapters learn over weights in 4 bits; what is saved is a model in 16 or 32 bits that says the same."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError, MissingExtraError, SettingsError
from quietstar.training.model_arguments import ModelArguments
from tests.tiny_tokenizer import tiny_folder
from tests.training.test_run import texts, train  # noqa: F401  (a fixture)

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra: quant)")
QLORA = dict(lora=True, lora_r=4, load_in_4bit=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wide enough for a block of 64 weights, which have one scale."""
    return tiny_folder(tmp_path_factory.mktemp("base"), "llama", hidden_size=64, intermediate_size=128)


def test_a_run_in_4_bits_from_its_settings_to_its_model(base, texts, tmp_path):  # noqa: F811
    how = dict(save_strategy="steps", save_steps=2, save_total_limit=9, max_steps=4) | QLORA
    train(base, texts, tmp_path / "run", **how)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "quantization_config" not in config["base_config"]
    model = QuietStarForCausalLM.from_pretrained(tmp_path / "run")
    weights, plain = dict(model.named_parameters()), AutoModelForCausalLM.from_pretrained(base)
    original = plain.model.layers[0].mlp.up_proj.weight
    unpacked = weights["base_lm.model.layers.0.mlp.up_proj.base_layer.weight"]
    assert len(unpacked.unique()) < len(original.unique()) / 4  # sixteen values for each block
    assert torch.nn.functional.cosine_similarity(unpacked.flatten().float(), original.flatten(), dim=0) > 0.98
    assert max(float(value.abs().max()) for name, value in weights.items() if "lora_B" in name) > 0
    assert float(model.mixing_head.layers[-1].weight.abs().max()) > 0


def test_it_resumes_bit_by_bit(base, texts, tmp_path, monkeypatch):  # noqa: F811
    """As on a GPU: on a CPU with AVX512-BF16, bitsandbytes packs weights anew for each evaluation, and rounds them."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    how = dict(save_strategy="steps", save_steps=2, save_total_limit=9) | QLORA
    train(base, texts, tmp_path / "straight", max_steps=4, **how)
    train(base, texts, tmp_path / "stopped", max_steps=2, **how)
    train(base, texts, tmp_path / "stopped", max_steps=4, resume=True, **how)
    models = [QuietStarForCausalLM.from_pretrained(tmp_path / name) for name in ("straight", "stopped")]
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_model_that_is_still_packed_is_no_folder_to_load(base, tmp_path):
    """Its weights lie in a model within the model, where transformers does not unpack them."""
    model = QuietStarForCausalLM.from_base(base, **ModelArguments(**QLORA).loading_settings())
    model.save_pretrained(tmp_path / "packed")
    with pytest.raises(CheckpointError, match=r"still packed by bitsandbytes.*call base_lm.dequantize\(\) before"):
        QuietStarForCausalLM.from_pretrained(tmp_path / "packed")
    model.base_lm.dequantize()
    model.save_pretrained(tmp_path / "unpacked")
    config = json.loads((tmp_path / "unpacked" / "config.json").read_text())
    assert not any("quantization" in name for name in (*config, *config["base_config"]))
    QuietStarForCausalLM.from_pretrained(tmp_path / "unpacked").save_pretrained(tmp_path / "again")


def test_a_thinking_model_is_not_packed(base, texts, tmp_path):  # noqa: F811
    QuietStarForCausalLM.from_base(base).save_pretrained(tmp_path / "thinking")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "thinking")
    with pytest.raises(
        SettingsError, match="is a thinking model already, and lora, load_in_4bit can only be given to a base model"
    ):
        train(tmp_path / "thinking", texts, tmp_path / "run", **QLORA)


def test_weights_in_4_bits_do_not_train():
    with pytest.raises(SettingsError, match="load_in_4bit was given without lora"):
        ModelArguments(load_in_4bit=True)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"quietstar\[quant\]"):
        ModelArguments(**QLORA).loading_settings()
