"""A model from a GGUF file is the model that the file was made of, and nothing of the file is left in it."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GgufConfig

from quietstar import QuietStarForCausalLM
from quietstar.base.loading import load_base, load_tokenizer
from quietstar.errors import CheckpointError, SettingsError, UnsupportedModelError
from tests.tiny_gguf import TITLE, WORDS, reference_tokenizer, tiny_llama, write_gguf

IDS = torch.randint(3, len(WORDS), (2, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
def test_it_predicts_as_the_model_that_the_file_was_made_of(tmp_path, tied):
    original = tiny_llama(tie_word_embeddings=tied)
    loaded = load_base(write_gguf(tmp_path / "tiny.gguf", original))
    torch.testing.assert_close(logits_of(loaded), logits_of(original), rtol=1e-5, atol=1e-5)
    assert loaded.config.tie_word_embeddings is tied


def test_weights_are_float32_unless_asked_otherwise(file):
    assert load_base(file).dtype == load_base(file, dtype="auto").dtype == torch.float32
    assert load_base(file, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_base(file, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_nothing_of_the_file_is_left_in_the_model(file):
    """Otherwise it could not be saved, and training would refuse it as quantized."""
    base_lm = load_base(file)
    assert not getattr(base_lm, "is_quantized", False)
    assert not hasattr(base_lm, "hf_quantizer")
    said = json.dumps(base_lm.config.to_dict())
    assert not any(word in said for word in ("quantization_config", "gguf_file", "Tiny 1K", "_model_name_or_path"))
    assert base_lm.name_or_path == base_lm.config.name_or_path == str(file)


def test_saved_loaded_and_saved_again(file, tmp_path):
    fresh = QuietStarForCausalLM.from_base(file, n_ahead=4)
    fresh.save_pretrained(tmp_path / "once")
    once = QuietStarForCausalLM.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    files = [(tmp_path / name / "config.json").read_text() for name in ("once", "twice")]
    assert files[0] == files[1]
    assert not any(word in files[0] for word in ("quantization", "gguf", str(file.parent), "Tiny 1K"))
    twice = QuietStarForCausalLM.from_pretrained(tmp_path / "twice")
    assert torch.equal(logits_of(twice), logits_of(fresh))


def test_folders_that_were_saved_with_what_the_loader_left(file, tmp_path):
    """Earlier versions saved the quantization config, although the weights are dequantized."""
    QuietStarForCausalLM.from_base(file, n_ahead=4).save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    packing = {"quant_method": "gguf", "gguf_file": file.name, "dequantize": False}
    config["base_config"] |= {"quantization_config": packing, "_model_name_or_path": "Tiny 1K", "_name_or_path": "/x"}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    model = QuietStarForCausalLM.from_pretrained(tmp_path / "old")
    model.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())["base_config"]
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & saved.keys()


def test_every_way_to_name_it_finds_the_tokenizer_too(file):
    """Start and end of a thought begin as the embedding of the initial text's first token."""
    (first,) = reference_tokenizer()("ab", add_special_tokens=False)["input_ids"]
    for how in ({"base": file}, {"base": file.parent}, {"base": str(file.parent), "gguf_file": file.name}):
        model = QuietStarForCausalLM.from_base(n_ahead=4, initial_thought_text="ab", **how)
        torch.testing.assert_close(model.thought_embeddings.start, model.base_lm.get_input_embeddings().weight[first])
        names = {key: value for key, value in how.items() if key != "base"}
        assert load_tokenizer(how["base"], **names)("ab ab")["input_ids"] == [first, first + 1]


def test_a_model_that_the_caller_has_loaded(file, tmp_path):
    """The quantization config that transformers leaves behind is removed."""
    base_lm = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    assert base_lm.is_quantized
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=reference_tokenizer(), n_ahead=4)
    assert not model.base_lm.is_quantized
    model.save_pretrained(tmp_path / "thinking")
    model.base_lm.save_pretrained(tmp_path / "plain")
    for kind in ("thinking", "plain"):
        said = (tmp_path / kind / "config.json").read_text()
        assert not any(word in said for word in ("gguf", "quantization", TITLE))
    assert torch.equal(logits_of(QuietStarForCausalLM.from_pretrained(tmp_path / "thinking")), logits_of(model))


def test_a_model_whose_weights_are_still_packed(file):
    base_lm = load_base(file)
    base_lm.config.quantization_config = GgufConfig()
    base_lm.register_buffer("blocks", torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(UnsupportedModelError, match=r"quantized as in its GGUF file.*dequantize=True"):
        QuietStarForCausalLM.from_base(base_lm, tokenizer=reference_tokenizer())


def test_4_bits_are_for_a_folder(file):
    with pytest.raises(SettingsError, match=r"is a GGUF file, .*quietstar export"):
        load_base(file, quantization_config=BitsAndBytesConfig(load_in_4bit=True))


# ---------------------------------------------------------------------- files that cannot be loaded


@pytest.mark.parametrize("architecture", ["clip", "no-such-model", "bert"])
def test_an_architecture_that_transformers_does_not_load(tmp_path, architecture):
    file = write_gguf(tmp_path / "other.gguf", tiny_llama(), {"general.architecture": architecture})
    with pytest.raises(UnsupportedModelError, match=f"has architecture '{architecture}', and transformers .* does not"):
        load_base(file)
    with pytest.raises(UnsupportedModelError, match=architecture):
        load_tokenizer(file)


def test_weights_that_are_missing(tmp_path):
    """transformers would continue with random ones."""
    file = write_gguf(tmp_path / "less.gguf", tiny_llama(), tensors={"blk.1.ffn_up.weight": None})
    with pytest.raises(CheckpointError, match=r"less.gguf lacks 1 of the model's weights, first model.layers.1.mlp.up"):
        load_base(file)


def test_weights_that_transformers_has_no_place_for(tmp_path, caplog):
    """For example unknown divisors of rope frequencies: transformers silently ignores them."""
    file = write_gguf(tmp_path / "more.gguf", tiny_llama(), tensors={"rope_freqs.weight": torch.arange(1.0, 5.0)})
    with caplog.at_level(logging.WARNING, "quietstar"):
        load_base(file)
    (warning,) = [record.message for record in caplog.records]
    assert "has 4 weights that transformers" in warning
    assert "does not use (rope_freqs.weight)" in warning


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.block_count": 10**6}, "num_hidden_layers 1000000; give at most"),
        ({"llama.embedding_length": 2**20, "llama.feed_forward_length": 2**28}, "its config describes"),
        ({"llama.embedding_length": 64}, "odd.gguf"),
        ({"llama.attention.head_count": 0}, "odd.gguf"),
        ({"llama.attention.head_count": "four"}, "odd.gguf"),
    ],
)
def test_sizes_that_the_weights_do_not_have(tmp_path, metadata, words):
    file = write_gguf(tmp_path / "odd.gguf", tiny_llama(), metadata)
    with pytest.raises((CheckpointError, SettingsError), match=words) as caught:
        load_base(file)
    assert "\n" not in str(caught.value)
