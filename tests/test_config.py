"""Settings: impossible ones are refused by name, and those of a model come back from its folder."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from quietstar import QuietStarConfig, QuietStarForCausalLM
from quietstar.attention.hook import own_implementation
from quietstar.errors import SettingsError
from tests.tiny import FAMILIES, tiny_base, tiny_model


@pytest.mark.parametrize(
    "settings",
    [
        {"n_ahead": 1},
        {"n_ahead": 2.5},
        {"n_ahead": True},
        {"n_ahead_talk": 0},
        {"n_passes": 0},
        {"reinforce_temperature": 0},
        {"embedding_scale": 0},
        {"thought_temperature": -1},
        {"policy_weight": -1.0},
        {"mixing": "both"},
        {"thought_source": "noise"},
        {"filler_text": ""},
        {"filler_token_id": -1},
        {"advantage": "best"},
        {"advantage": ["positive"]},
        {"nll_weight": -0.5},
        {"nll_weight": "1"},
        {"nll_weight": float("inf")},
        {"nll_weight": 0.0},  # the default weight of the policy loss is relative to the nll
        {"base_loss_weight": 1.5},
        {"initial_thought_text": ""},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name(settings: dict) -> None:
    (name,) = settings
    for make in (QuietStarConfig, lambda **given: QuietStarForCausalLM.from_base("no-such-model", **given)):
        with pytest.raises(SettingsError, match=name) as refusal:
            make(**settings)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["leave_one_out", "standardized"])
def test_thoughts_are_compared_where_there_are_several(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"advantage is {kind}, .* n_passes is 1; give an n_passes of at least 2"):
        QuietStarConfig(advantage=kind, n_passes=1)
    QuietStarConfig(advantage="centered", n_passes=1)


def test_a_base_config_needs_its_kind() -> None:
    with pytest.raises(SettingsError, match="model_type"):
        QuietStarConfig(base_config={"hidden_size": 32})
    config = QuietStarConfig(base_config={"model_type": "llama", **FAMILIES["llama"]})
    assert config.hidden_size == 32


def test_a_config_keeps_the_inner_attention() -> None:
    """transformers resets it to None, and attention then runs without its mask."""
    base_lm = tiny_base()
    assert own_implementation(base_lm) == "sdpa"
    QuietStarConfig(base_config=base_lm.config)
    assert own_implementation(base_lm) == "sdpa"


def test_settings_come_back(tmp_path: Path) -> None:
    settings = {
        "n_ahead": 5,
        "n_ahead_talk": 3,
        "n_passes": 4,
        "thought_temperature": 0.5,
        "reinforce_temperature": 2.0,
        "policy_weight": 10.0,
        "advantage": "leave_one_out",
        "nll_weight": 0.0,
        "base_loss_weight": 0.25,
        "embedding_scale": 10.0,
        "initial_thought_text": "hm",
        "suppressed_token_ids": [3, 7],
    }
    model = tiny_model("mistral-window", **settings)
    model.save_pretrained(tmp_path)
    for config in (AutoConfig.from_pretrained(tmp_path), QuietStarForCausalLM.from_pretrained(tmp_path).config):
        assert isinstance(config, QuietStarConfig)
        assert {name: getattr(config, name) for name in settings} == settings
        assert config.base_config.model_type == "mistral"
        assert config.base_config.sliding_window == 5
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.thought_embeddings.start, model.thought_embeddings.start), "fed at its own scale"


ADAPTERS = [
    ({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"}, None),
    ({"target_modules": "all-linear", "layers_to_transform": [0, 1], "use_dora": False, "bias": None}, None),
    ({"r": 4.5}, "r 4.5; give a whole number"),
    ({"r": True}, "r True; give a whole number"),
    ({"lora_alpha": "much"}, "lora_alpha 'much'; give a number"),
    ({"target_modules": "(a+)+"}, "give a list of modules' names"),
    ({"target_modules": [1]}, "give a list of modules' names"),
    ({"layers_to_transform": [0.5]}, "give a list of whole numbers"),
    ({"bias": "two words"}, "give a word"),
    ({"use_dora": 1}, "give true or false"),
    ({"init_lora_weights": 1}, "give true, false or a word"),
    ({"auto_mapping": {}}, "'auto_mapping', which is not a setting; choose from r, lora_alpha"),
    ([4], "give settings such as"),
]


@pytest.mark.parametrize("which", ["lora", "branch_adapters"])
@pytest.mark.parametrize(("settings", "refusal"), ADAPTERS, ids=str)
def test_settings_of_adapters_have_types(which: str, settings: Any, refusal: str | None) -> None:
    if refusal is None:
        assert getattr(QuietStarConfig(**{which: settings}), which) == settings
        return
    with pytest.raises(SettingsError, match=f"^{which} .*{re.escape(refusal)}"):
        QuietStarConfig(**{which: settings})


def test_suppressed_are_the_named_ids_and_those_without_a_token() -> None:
    base = {"model_type": "llama", **FAMILIES["llama"], "vocab_size": 8}
    assert QuietStarConfig(base_config=base, suppressed_token_ids=[5, 2]).suppressed == [2, 5]
    assert QuietStarConfig(base_config=base, suppressed_token_ids=[2, 6], n_tokens=6).suppressed == [2, 6, 7]


def test_what_is_saved_does_not_say_where_the_base_model_was_loaded_from() -> None:
    base = AutoConfig.for_model("llama", **FAMILIES["llama"])
    base.name_or_path, base.gguf_file = "/somewhere/base", "base.gguf"
    fields = QuietStarConfig(base_config=base).to_dict()
    assert fields["base_config"]["model_type"] == "llama"
    assert not {"_name_or_path", "gguf_file"} & fields["base_config"].keys()
