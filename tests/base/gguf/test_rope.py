"""Rope scaling of a GGUF file is applied in the loaded model, also after saving and loading again."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quietstar.base.loading import load_base
from quietstar.errors import CheckpointError
from tests.tiny_gguf import tiny_llama, write_gguf

SCALING = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4096},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
THETA = 500_000.0


def scaled(kind: str, **further):
    rope = {"rope_type": kind, "rope_theta": THETA, **SCALING.get(kind, {}), **further}
    return tiny_llama(rope_parameters=rope, max_position_embeddings=16_384)


def divisors(model) -> torch.Tensor:
    """Return the divisors [F] that llama.cpp's converter writes for Llama 3."""
    of_its_own, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    return scaled("default").model.rotary_emb.inv_freq / of_its_own


def write_scaled(file, model, kind: str, **further):
    fields = {"llama.rope.freq_base": THETA}
    if kind == "llama3":
        return write_gguf(file, model, fields, {"rope_freqs.weight": divisors(model)})
    fields |= {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
    if kind == "yarn":
        fields["llama.rope.scaling.original_context_length"] = 4096
    return write_gguf(file, model, fields | further)


@pytest.mark.parametrize("kind", SCALING)
def test_a_model_reads_positions_as_it_was_trained_to(tmp_path, caplog, kind):
    model, ids = scaled(kind), torch.arange(3, 63)[None]
    with caplog.at_level(logging.WARNING, "quietstar"):
        base_lm = load_base(write_scaled(tmp_path / "m.gguf", model, kind))
    base_lm.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        own, plain = (of(ids).logits for of in (model, scaled("default")))
        for each in (base_lm, AutoModelForCausalLM.from_pretrained(tmp_path / "saved")):
            torch.testing.assert_close(each(ids).logits, own, rtol=0, atol=1e-4)
    assert (own - plain).abs().max() > 1e-2
    assert not [record for record in caplog.records if record.name.startswith("quietstar")]


def test_frequencies_divided_in_another_way_are_warned_of(tmp_path, caplog):
    model = scaled("llama3")
    file = write_gguf(
        tmp_path / "m.gguf",
        model,
        {"llama.rope.freq_base": THETA},
        {"rope_freqs.weight": divisors(model) * torch.tensor([1.0, 1.0, 1.1, 1.0])},
    )
    with caplog.at_level(logging.WARNING, "quietstar"):
        assert load_base(file).config.rope_parameters["rope_type"] == "default"
    assert "does not use (rope_freqs.weight)" in caplog.text


@pytest.mark.parametrize("factor", [0.0, 0.5, float("nan"), "four", None])
def test_a_factor_that_scales_nothing(tmp_path, factor):
    file = write_scaled(tmp_path / "m.gguf", scaled("linear"), "linear", **{"llama.rope.scaling.factor": factor})
    with pytest.raises(CheckpointError, match=r"m.gguf has rope scaling factor .*; download it again"):
        load_base(file)
