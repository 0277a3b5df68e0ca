"""A GGUF file predicts what the model predicts: in llama.cpp, and in transformers bit by bit."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from quietstar.base.loading import load_base
from quietstar.errors import UnsupportedModelError
from quietstar.interop.gguf.families import FAMILIES
from quietstar.interop.gguf.write import write_gguf
from tests.interop.gguf.conftest import LLAMA3, ROPE, YARN, plain_model
from tests.llama_cpp import llama_cpp
from tests.tiny_tokenizer import ascii_tokenizer

pytest.importorskip("gguf", reason="gguf is not installed (extra: gguf)")

PROMPT = torch.randint(5, 120, (1, 12), generator=torch.Generator().manual_seed(1))
N = 64
GEMMA3_LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", **ROPE},
}
MODELS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 16}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, **ROPE}}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral-window", {"sliding_window": 100}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gemma2-caps": ("gemma2", {"attn_logit_softcapping": 10.0, "final_logit_softcapping": 20.0}),
    "gemma3": ("gemma3_text", {}),
    "gemma3-linear": ("gemma3_text", {"rope_parameters": GEMMA3_LINEAR}),
    "gemma3-untied": ("gemma3_text", {"tie_word_embeddings": False}),
}
"""name -> family and settings"""


def difference(file, model: PreTrainedModel) -> float:
    """How far a model is from llama.cpp's greedy continuation of PROMPT, in nats of a token.

    The largest difference of log-probabilities, or distance of llama.cpp's token from the model's likeliest one.
    """
    with llama_cpp(file) as loaded:
        found, theirs = loaded.greedy(PROMPT[0].tolist(), N)
    assert len(set(found)) > 3, "a test that sees one token for ever tests nothing"
    with torch.no_grad():
        logits = model(torch.cat([PROMPT[0], torch.tensor(found)])[None]).logits[0]
    logprobs = logits[PROMPT.shape[1] - 1 : -1].float().log_softmax(-1)
    ours = logprobs[range(N), found]
    return float(torch.cat([(ours - torch.tensor(theirs)).abs(), logprobs.amax(-1) - ours]).max())


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_predicts_what_the_model_predicts(tmp_path, name):
    """Gemma's activation comes from a table of float16 there."""
    family, settings = MODELS[name]
    model = plain_model(family, **settings)
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="float32", name="m")
    assert difference(tmp_path / "m.gguf", model) < (5e-3 if "gemma" in family else 5e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "llama-biases"])  # which transformers drops
def test_transformers_reads_it_back_bit_by_bit(tmp_path, name):
    family, settings = MODELS[name]
    model = plain_model(family, **settings)
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="float32", name="m")
    read = load_base(tmp_path / "m.gguf", attn_implementation="eager")
    ids = torch.randint(5, 120, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)
    assert read.config.tie_word_embeddings == model.config.tie_word_embeddings


@pytest.mark.parametrize(("family", "wrong"), [("llama", {"turns": False}), ("gemma2", {"norm_offset": 0.0})])
def test_a_deliberate_error_is_seen(tmp_path, monkeypatch, family, wrong):
    model = plain_model(family)
    monkeypatch.setitem(FAMILIES, family, replace(FAMILIES[family], **wrong))
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="float32", name="m")
    assert difference(tmp_path / "m.gguf", model) > 0.1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_the_weights_rounded(tmp_path, dtype):
    """Vectors stay float32."""
    model = plain_model("qwen2")
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype=dtype, name="m")
    read = dict(load_base(tmp_path / "m.gguf").named_parameters())
    for name, weight in model.named_parameters():
        expected = weight if weight.dim() == 1 else weight.to(getattr(torch, dtype)).float()
        assert torch.equal(read[name], expected), name
    assert difference(tmp_path / "m.gguf", load_base(tmp_path / "m.gguf")) < 0.1


def test_q8_0_is_within_half_a_step_of_the_weights(tmp_path):
    """A step is the 127th part of a block's largest value, kept in float16; rows of 48 become float16."""
    model = plain_model("llama")
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="q8_0", name="m")
    read = dict(load_base(tmp_path / "m.gguf").named_parameters())
    n_blocks = 0
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(read[name], weight)
        elif weight.shape[-1] % 32:
            assert torch.equal(read[name], weight.half().float()), name
        else:
            blocks, theirs = weight.reshape(-1, 32), read[name].reshape(-1, 32)
            step = blocks.abs().amax(-1, keepdim=True) / 127
            assert ((blocks - theirs).abs() <= step * (0.5 + 127 * 2**-11) + 1e-7).all(), name
            assert not torch.equal(blocks, theirs)
            n_blocks += len(blocks)
    assert n_blocks > 100
    # llama.cpp rounds what it multiplies by these weights to 8 bits, too
    assert difference(tmp_path / "m.gguf", load_base(tmp_path / "m.gguf")) < 0.5


def test_a_value_that_float16_does_not_have(tmp_path):
    model = plain_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e5
    with pytest.raises(
        UnsupportedModelError, match=r"weight blk\.1\.ffn_up\.weight has a value of 1e\+05, and float16"
    ):
        write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="float16", name="m")
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="bfloat16", name="m")


def test_what_fails_leaves_no_file(tmp_path, monkeypatch):
    class FullDiskError(Exception):
        pass

    def fail(*args: object) -> None:
        raise FullDiskError

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", fail)
    with pytest.raises(FullDiskError):
        write_gguf(plain_model("llama"), ascii_tokenizer(), tmp_path / "m.gguf", dtype="float32", name="m")
    assert list(tmp_path.iterdir()) == []


def test_embeddings_without_a_token_get_one_that_no_text_contains(tmp_path):
    """Vocabularies are padded for speed; llama.cpp needs as many tokens as embeddings."""
    n = len(ascii_tokenizer())
    model = plain_model("llama", vocab_size=n + 5)
    model.get_output_embeddings().weight.data[n:] = 0
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="float32", name="m")
    assert load_base(tmp_path / "m.gguf").get_input_embeddings().weight.shape[0] == n + 5
    assert difference(tmp_path / "m.gguf", model) < 5e-5


def test_a_rope_of_llama_3_has_its_divisors_in_the_file(tmp_path):
    model = plain_model("llama", rope_parameters=LLAMA3)
    write_gguf(model, ascii_tokenizer(), tmp_path / "m.gguf", dtype="float32", name="m")
    assert load_base(tmp_path / "m.gguf").config.rope_parameters == model.config.rope_parameters
