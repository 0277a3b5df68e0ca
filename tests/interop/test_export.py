"""A plain model leaves as a GGUF file or a folder; a thinking model does not; nothing is overwritten."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar.base.gguf.header import read_header
from quietstar.base.loading import load_base, load_tokenizer
from quietstar.base.sources import find_source
from quietstar.errors import CheckpointError, SettingsError, UnsupportedModelError
from quietstar.interop.export import export
from tests.interop.gguf.conftest import plain_model
from tests.tiny_gguf import tiny_llama, write_gguf
from tests.tiny_tokenizer import ascii_tokenizer, thinking_folders, tiny_folder

IDS = torch.randint(3, 120, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain(tmp_path) -> Path:
    plain_model("qwen2").to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    ascii_tokenizer().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@torch.no_grad()
def logits_of(name: Path) -> torch.Tensor:
    return load_base(name, dtype=torch.float32)(IDS).logits


def test_a_model_comes_back_from_its_file(plain, tmp_path):
    """As it is, without --dtype: in bfloat16, and the tokenizer with it."""
    export(str(plain), tmp_path / "m.gguf", to="gguf")
    assert torch.equal(logits_of(tmp_path / "m.gguf"), logits_of(plain))
    export(str(tmp_path / "m.gguf"), tmp_path / "again", to="plain", dtype="bfloat16")
    assert torch.equal(logits_of(tmp_path / "again"), logits_of(plain))
    text = "ab 12 it's"
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(text)["input_ids"] == ascii_tokenizer()(text)["input_ids"]
    said = (tmp_path / "again" / "config.json").read_text()
    assert not any(word in said for word in ("gguf", "quantization", "quietstar"))
    n_bytes = (tmp_path / "m.gguf").stat().st_size
    export(str(plain), tmp_path / "whole.gguf", to="gguf", dtype="float32")
    assert n_bytes < (tmp_path / "whole.gguf").stat().st_size


def test_the_file_names_the_model(plain, tmp_path):
    export(str(plain), tmp_path / "m.gguf", to="gguf", dtype="q8_0")
    fields = read_header(tmp_path / "m.gguf").fields
    assert (fields["general.name"], fields["general.architecture"], fields["general.file_type"]) == (
        "plain",
        "qwen2",
        7,
    )


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_a_folder_in_another_dtype(plain, tmp_path, dtype):
    export(str(plain), tmp_path / "out", to="plain", dtype=dtype)
    expected = torch.bfloat16 if dtype == "auto" else torch.float16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == expected
    assert load_tokenizer(tmp_path / "out") is not None


def test_a_gguf_file_becomes_an_ordinary_folder(tmp_path):
    original = tiny_llama()
    export(str(write_gguf(tmp_path / "tiny.gguf", original)), tmp_path / "plain", to="plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in original.state_dict().items())
    assert "gguf" not in json.dumps(json.loads((tmp_path / "plain" / "config.json").read_text()))


@pytest.mark.parametrize(
    ("target", "to", "dtype", "words"),
    [
        ("m.gguf", "onnx", "auto", "to is 'onnx'; give gguf or plain"),
        ("m.gguf", "gguf", "q4_0", "dtype is 'q4_0'; for gguf give one of auto, float32, float16, bfloat16, q8_0"),
        ("m", "plain", "q8_0", "dtype is 'q8_0'; for plain give one of auto, float32, float16, bfloat16$"),
        ("m", "gguf", "auto", "m does not end in .gguf; give a file that does"),
        ("there.gguf", "gguf", "auto", "there.gguf exists; give a new file"),
        ("no/m.gguf", "gguf", "auto", "the folder of .*no/m.gguf does not exist; create it"),
        ("plain", "plain", "auto", "plain is not empty; give a new or empty folder"),
        ("there.gguf", "plain", "auto", "there.gguf is not empty; give a new or empty folder"),
    ],
)
def test_bad_settings_are_one_line_and_change_nothing(plain, tmp_path, target, to, dtype, words):
    (tmp_path / "there.gguf").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((CheckpointError, SettingsError), match=words):
        export(str(plain), tmp_path / target, to=to, dtype=dtype)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.gguf").read_text() == "mine"


@pytest.mark.parametrize(("to", "target"), [("gguf", "m.gguf"), ("plain", "out")])
def test_a_thinking_model_is_distilled_first(tmp_path, to, target):
    thinking_folders(tmp_path, n_ahead=4)
    with pytest.raises(
        CheckpointError, match=r"is a thinking model, which other engines cannot run; .*quietstar distill"
    ):
        export(str(tmp_path / "thinking"), tmp_path / target, to=to)
    assert not (tmp_path / target).exists()


def test_vectors_are_not_rounded(tmp_path):
    model = plain_model("llama")
    model.model.norm.weight.data.fill_(1.0001234)
    model.save_pretrained(tmp_path / "plain")
    ascii_tokenizer().save_pretrained(tmp_path / "plain")
    export(str(tmp_path / "plain"), tmp_path / "m.gguf", to="gguf", dtype="bfloat16")
    assert torch.equal(load_base(tmp_path / "m.gguf").model.norm.weight, model.model.norm.weight)


def test_values_that_float16_does_not_have_are_refused(tmp_path):
    model = plain_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e5
    model.save_pretrained(tmp_path / "plain")
    ascii_tokenizer().save_pretrained(tmp_path / "plain")
    for to, target in (("gguf", "m.gguf"), ("plain", "out")):
        with pytest.raises(UnsupportedModelError, match=r"has a value of 1e\+05, and float16 ends at 65,504"):
            export(str(tmp_path / "plain"), tmp_path / target, to=to, dtype="float16")
        assert not (tmp_path / target).exists()


def test_float64_is_written_as_float32(tmp_path):
    plain_model("llama").double().save_pretrained(tmp_path / "plain")
    ascii_tokenizer().save_pretrained(tmp_path / "plain")
    export(str(tmp_path / "plain"), tmp_path / "m.gguf", to="gguf")
    assert torch.equal(logits_of(tmp_path / "m.gguf"), logits_of(tmp_path / "plain"))


@pytest.mark.parametrize(("to", "target"), [("gguf", "/proc/m.gguf"), ("plain", "/proc/out"), ("plain", "a" * 300)])
def test_a_target_that_cannot_be_written(plain, to, target):
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*\); give another target"):
        export(str(plain), target, to=to)


def test_weights_that_are_missing(plain, tmp_path):
    weights = load_file(plain / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's weights, first model\.layers\.0\.mlp\.up_proj"):
        export(str(plain), tmp_path / "m.gguf", to="gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_files_next_to_the_target_are_not_read(tmp_path):
    """transformers takes a config or a tokenizer next to a GGUF file for the file's."""
    tiny_folder(tmp_path / "other", "llama", vocab_size=300)
    plain_model("llama").save_pretrained(tmp_path / "plain")
    ascii_tokenizer().save_pretrained(tmp_path / "plain")
    export(str(tmp_path / "plain"), tmp_path / "other" / "m.gguf", to="gguf")
    assert (tmp_path / "other" / "m.gguf").is_file()


def test_a_model_without_a_tokenizer(tmp_path):
    plain_model("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="bare has no tokenizer, which a GGUF file needs"):
        export(str(tmp_path / "bare"), tmp_path / "m.gguf", to="gguf")
    export(str(tmp_path / "bare"), tmp_path / "out", to="plain")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.long
def test_a_real_model_says_the_same_in_llama_cpp(tmp_path):
    """SmolLM2-135M in float32: 64 tokens, and the tokens of texts."""
    from tests.llama_cpp import llama_cpp

    try:
        find_source("smollm2-135m")
    except CheckpointError as error:
        pytest.skip(str(error))
    export("smollm2-135m", tmp_path / "m.gguf", to="gguf", dtype="float32")
    model, tokenizer = load_base("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert model is not None
    prompt = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    said = model.generate(prompt, max_new_tokens=64, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert len(said) == 64
    with llama_cpp(tmp_path / "m.gguf") as loaded:
        assert loaded.greedy(prompt[0].tolist(), 64)[0] == said
        for text in (
            "The capital of France",
            "1234  it's\n\n\tx_y(3.14)",
            "<|im_start|>user\nhi<|im_end|>",
            "caf\u00e9 \u6771",
        ):
            assert loaded.tokens(text) == tokenizer(text)["input_ids"], text


def test_tokens_that_transformers_reads_otherwise_are_told(plain, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "quietstar"):
        export(str(plain), tmp_path / "m.gguf", to="gguf")
    assert "when transformers reads the file" not in caplog.text
    other = ascii_tokenizer()
    other.backend_tokenizer.model = type(other.backend_tokenizer.model)(vocab=other.get_vocab(), merges=[])
    monkeypatch.setattr(
        "quietstar.interop.export.load_tokenizer", lambda name: other if ".gguf" in str(name) else ascii_tokenizer()
    )
    with caplog.at_level(logging.WARNING, "quietstar"):
        export(str(plain), tmp_path / "n.gguf", to="gguf")
    assert "2 of the 133 tokens' texts become other tokens when transformers reads the file, first 'ab'" in caplog.text
