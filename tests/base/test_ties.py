"""A config's tie_word_embeddings is true exactly if one matrix is stored for embeddings and LM head."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from quietstar import QuietStarForCausalLM
from quietstar.base.ties import is_tied
from quietstar.interop.shards import without_tied
from tests.tiny import tiny_base

IDS = torch.arange(5, 25)[None]


@torch.no_grad()
def logits_of(model):
    return model.eval()(IDS).logits


def base_of(said: bool, tied: bool):
    """Return a base model that may be tied in another way than its config says."""
    base_lm = tiny_base("llama", tie_word_embeddings=said)
    table, head = base_lm.get_input_embeddings(), base_lm.get_output_embeddings()
    if tied:
        head.weight = table.weight
    elif said:
        head.weight = torch.nn.Parameter(table.weight.detach().flip(0))
    return base_lm


@pytest.mark.parametrize("kind", ["thinking", "plain"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_what_is_saved_says_what_it_is(tmp_path, said, tied, kind):
    model = QuietStarForCausalLM.from_base(base_of(said, tied), n_ahead=4)
    (model if kind == "thinking" else model.base_lm).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("base_config", config)["tie_word_embeddings"] is tied
    stored = [name for name in load_file(tmp_path / "model.safetensors") if "lm_head" in name or "embed_tokens" in name]
    assert len(stored) == (1 if tied else 2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert is_tied(again.base_lm if kind == "thinking" else again) is tied
    assert torch.equal(logits_of(again), logits_of(model if kind == "thinking" else model.base_lm))


def test_a_folder_whose_config_is_wrong_is_put_right_in_loading(tmp_path):
    """As earlier versions wrote it."""
    model = QuietStarForCausalLM.from_base(base_of(False, False), n_ahead=4)
    model.save_pretrained(tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "config.json").read_text())
    config["base_config"]["tie_word_embeddings"] = True
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config))
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path / "wrong")
    assert loaded.config.base_config.tie_word_embeddings is False
    assert torch.equal(logits_of(loaded), logits_of(model))
    loaded.save_pretrained(tmp_path / "right")
    assert torch.equal(logits_of(QuietStarForCausalLM.from_pretrained(tmp_path / "right")), logits_of(model))


@pytest.mark.parametrize("tied", [True, False])
def test_shards_hold_each_matrix_once(tied):
    model = QuietStarForCausalLM.from_base(base_of(not tied, tied), n_ahead=4)
    kept = without_tied(model, model.state_dict())
    assert ("base_lm.lm_head.weight" in kept) is not tied
