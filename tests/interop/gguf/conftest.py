"""Tiny plain models, loud enough that what a token sees matters, that never predict a special token."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tiny import FAMILIES, loud
from tests.tiny_tokenizer import ascii_tokenizer

GEMMA3 = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
"""the layers that llama.cpp assumes"""

ROPE = {"rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 500_000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **ROPE}


def plain_model(family: str, **settings: object) -> PreTrainedModel:
    """A model of the vocabulary of `ascii_tokenizer`."""
    config = {**FAMILIES[family], **(GEMMA3 if family == "gemma3_text" else {}), "vocab_size": len(ascii_tokenizer())}
    config = AutoConfig.for_model(family.split("-")[0], **(config | settings))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # or soft caps would be left out
    loud(model)
    if "gemma" in family:  # which scales embeddings by sqrt(D), and repeats a token for ever if they are loud
        model.get_input_embeddings().weight.data.mul_(0.05 if family == "gemma2" else 0.2)
    model.get_output_embeddings().weight.data[:3] = 0
    return model.eval()


@pytest.fixture
def saved(tmp_path) -> Callable[..., Path]:
    """A function that saves a model with its tokenizer, and returns the folder."""

    def save(model: PreTrainedModel) -> Path:
        model.save_pretrained(tmp_path / "plain")
        ascii_tokenizer().save_pretrained(tmp_path / "plain")
        return tmp_path / "plain"

    return save
