"""Whatever a config contains, only this package's errors are raised, in one line, before time or memory is spent."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar import QuietStarConfig, QuietStarForCausalLM
from quietstar.base.untrusted import MOST, check_folder
from quietstar.errors import CheckpointError, QuietStarError, SettingsError
from quietstar.scaling.shape import read_config, shape_of
from tests.base.untrusted.models import LOADERS, VALUES, Copied, changed
from tests.elsewhere import only_our_errors, refused
from tests.tiny import tiny_base

UNKNOWN = [
    *("check", "to_dict", "get_text_config", "vocab_size", "hidden_size", "_name_or_path", "__class__", "__dict__"),
    *("num_labels", "id2label", "torch_dtype", "per_layer_config", "quantization_config", "fusion_config", "lora"),
    *(
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "configuration_files",
        "tie_word_embeddings",
    ),
    *("attribute_map", "sub_configs", "auto_map", "transformers_weights", "rope_scaling", "layer_types", "text_config"),
]


@st.composite
def changes(draw: st.DrawFn, fields: dict[str, Any]) -> dict[str, Any]:
    """A thinking model's config with up to three fields, its own or its base model's, changed, added or removed."""
    fields = json.loads(json.dumps(fields))
    for _ in range(draw(st.integers(1, 3))):
        part = (
            draw(st.sampled_from([fields, fields["base_config"]]))
            if isinstance(fields.get("base_config"), dict)
            else fields
        )
        name = draw(st.sampled_from([*part, *UNKNOWN]))
        if draw(st.integers(0, 9)) == 0:
            part.pop(name, None)
        else:
            part[name] = draw(VALUES)
    return fields


@given(data=st.data())
@settings(max_examples=100)
def test_whatever_a_config_says(folders: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    fields = data.draw(changes(json.loads((folders / "thinking/config.json").read_text())))
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(fields))
    os.link(folders / "thinking/model.safetensors", folder / "model.safetensors")
    only_our_errors(lambda: QuietStarConfig.from_pretrained(folder))
    only_our_errors(lambda: QuietStarForCausalLM.from_pretrained(folder))


TEXTS = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 900).map(lambda n: ("cut", n)),
    st.sampled_from(["[", '{"a":', '{"base_config":']).map(lambda part: part.encode() * 20_000),
    st.sampled_from(
        [b"[]", b"3", b"null", b'"quietstar"', b"\xff\xfe{\x00", b"\x00", b"1" * 5000, b'{"model_type": 3}']
    ),
)


@given(text=TEXTS)
@settings(max_examples=40)
def test_whatever_stands_in_place_of_a_config(
    folders: Path, tmp_path_factory: pytest.TempPathFactory, text: bytes | tuple[str, int]
) -> None:
    folder = tmp_path_factory.mktemp("text")
    whole = (folders / "thinking/config.json").read_bytes()
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else whole[: text[1]])
    os.link(folders / "thinking/model.safetensors", folder / "model.safetensors")
    only_our_errors(lambda: QuietStarConfig.from_pretrained(folder))
    for load in LOADERS.values():
        refused(lambda load=load: load(folder))  # type: ignore[misc]


GENERATION = [
    "max_length",
    "eos_token_id",
    "cache_implementation",
    "custom_generate",
    "transformers_version",
    "temperature",
]


@given(fields=st.dictionaries(st.sampled_from(GENERATION), VALUES, min_size=1) | VALUES)
@settings(max_examples=30)
def test_whatever_generation_is_asked_for(folders: Path, tmp_path_factory: pytest.TempPathFactory, fields: Any) -> None:
    folder = tmp_path_factory.mktemp("generation")
    for name in ("config.json", "model.safetensors"):
        os.link(folders / "thinking" / name, folder / name)
    (folder / "generation_config.json").write_text(json.dumps(fields))
    only_our_errors(lambda: QuietStarForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_labels"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_config_that_asks_for_more_parts_than_there_are(copied: Copied, name: str, inside: bool) -> None:
    """Each layer is an object, and so is each label: a billion take hours, and all memory."""
    file = copied("thinking") / "config.json"
    fields = json.loads(file.read_text())
    (fields["base_config"] if inside else fields)[name] = 10**9
    file.write_text(json.dumps(fields))
    refused(lambda: QuietStarForCausalLM.from_pretrained(file.parent), f"{name} 1000000000; give at most {MOST}")
    changed(copied("base") / "config.json", **{name: 10**9})
    refused(lambda: QuietStarForCausalLM.from_base(file.parents[1] / "base"), f"{name} 1000000000")


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size"])
def test_a_config_of_a_model_that_its_weights_are_far_too_few_for(copied: Copied, name: str) -> None:
    """Otherwise memory for the missing weights is allocated before the error."""
    for kind in ("thinking", "base", "original"):
        file = copied(kind) / "config.json"
        if kind == "thinking":
            changed(file, base_config=json.loads(file.read_text())["base_config"] | {name: 2**26})
        else:
            changed(file, **{name: 2**26})
        refused(lambda kind=kind, file=file: LOADERS[kind](file.parent), "its config describes", CheckpointError)


def test_a_model_that_its_files_do_hold_is_loaded(folders: Path) -> None:
    """Every weight of a model of one byte a weight, and of half a byte."""
    base_lm = tiny_base()
    (folders / "half").mkdir()
    n_weights = sum(parameter.numel() for parameter in base_lm.parameters())
    (folders / "half/model.safetensors").write_bytes(bytes(n_weights // 2))
    check_folder(folders / "half", lambda: base_lm)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"r": 2, "megatron_config": {"a": 1}, "megatron_core": "evil"}, "megatron_config"),
        ({"r": 2, "target_modules": "(([a-z_.])+)+!"}, "a list of modules' names"),
        ({"r": 2, "rank_pattern": {"(.+)+!": 3}}, "rank_pattern"),
        ({"r": 2, "layers_pattern": "(.+)+!"}, "layers_pattern"),
        ({"r": 2, "exclude_modules": "(.+)+!"}, "exclude_modules"),
        ({"r": "2"}, "a whole number"),
        ({"r": True}, "a whole number"),
        ({"r": 2, "target_modules": [["q_proj"]]}, "a list of modules' names"),
        ({"r": 2, "init_lora_weights": "../a"}, "true, false or a word"),
        ([["r", 2]], "give settings such as"),
    ],
)
def test_adapters_are_named_and_not_searched_for(copied: Copied, lora: object, words: str) -> None:
    """PEFT imports what `megatron_core` names, and a pattern may search for ever."""
    changed(copied("thinking") / "config.json", lora=lora)
    folder = copied("thinking")
    refused(lambda: QuietStarForCausalLM.from_pretrained(folder), words, SettingsError)


@given(
    lora=st.dictionaries(
        st.sampled_from(["r", "lora_alpha", "lora_dropout", "target_modules", "bias", "task_type"]), VALUES
    )
)
@settings(max_examples=40)
def test_whatever_adapters_a_config_has(folders: Path, tmp_path_factory: pytest.TempPathFactory, lora: dict) -> None:
    folder = tmp_path_factory.mktemp("lora")
    (folder / "config.json").write_bytes((folders / "thinking/config.json").read_bytes())
    changed(folder / "config.json", lora=lora)
    os.link(folders / "thinking/model.safetensors", folder / "model.safetensors")
    only_our_errors(lambda: QuietStarForCausalLM.from_pretrained(folder))


def test_a_folder_without_a_config_has_no_config_of_defaults(tmp_path: Path) -> None:
    for load in (QuietStarConfig.from_pretrained, QuietStarForCausalLM.from_pretrained, read_config):
        refused(lambda load=load: load(str(tmp_path)), "has no config.json", CheckpointError)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_hidden_layers": 10**9}, "give at most 1024"),
        ({"_attn_implementation": "someone/kernel"}, "code of another repository"),
        ({"intermediate_size": 10**400}, "cannot load a model"),
    ],
)
def test_a_plan_is_made_of_a_config_that_could_be_loaded(copied: Copied, fields: dict[str, Any], words: str) -> None:
    folder = copied("base")
    changed(folder / "config.json", **fields)
    with pytest.raises(QuietStarError, match=words) as refusal:
        shape_of(read_config(str(folder)), "base")
    assert "\n" not in str(refusal.value)
    assert "frame #" not in str(refusal.value)


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("inside", [True, False])
def test_no_kernel_of_another_repository_is_fetched(copied: Copied, name: str, inside: bool) -> None:
    file = copied("thinking") / "config.json"
    fields = json.loads(file.read_text())
    (fields["base_config"] if inside else fields)[name] = "someone/kernel"
    file.write_text(json.dumps(fields))
    refused(lambda: QuietStarForCausalLM.from_pretrained(file.parent), "code of another repository", SettingsError)
    changed(copied("base") / "config.json", **{name: "someone/kernel"})
    refused(lambda: QuietStarForCausalLM.from_base(file.parents[1] / "base"), "code of another repository")
