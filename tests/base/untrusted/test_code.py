"""Code next to a model or in its files runs only with the user's consent."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError, QuietStarError, SettingsError
from quietstar.inference.loading import UseArguments, load_model
from quietstar.runs.options import make_parser, parse
from quietstar.scaling.shape import read_config
from tests.base.untrusted.models import CPU, LOADERS, VALUES, Copied, changed
from tests.elsewhere import Surprise, only_our_errors, refused


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once code from elsewhere has run; code that is trusted is copied into a folder beside it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    return tmp_path / "witness"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", ["thinking", "base", "original", "by command"])
def test_a_pickle_with_code_is_not_opened(copied: Copied, witness: Path, kind: str, sharded: bool) -> None:
    folder = copied("thinking" if kind == "by command" else kind)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save({**state, "talk_head.0.9": Surprise(witness)}, folder / file)
    if sharded:
        index = {"metadata": {}, "weight_map": dict.fromkeys([*state, "talk_head.0.9"], file)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.load(folder / file, weights_only=False)
    assert witness.exists(), "it does run where it is trusted"
    witness.unlink()
    load = (lambda: load_model(folder, CPU)) if kind == "by command" else (lambda: LOADERS[kind](folder))
    refused(load, r"cannot load a model.*was not opened\)$", CheckpointError)
    assert not witness.exists()


def custom_code(folder: Path, witness: Path) -> None:
    """Write modules next to a model that record when they are imported."""
    for name in ("configuration_x", "modeling_x", "tokenization_x", "custom_generate/generate"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(
            f"import pathlib\npathlib.Path({str(witness)!r}).touch()\n"
            "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
            "class XConfig(LlamaConfig): ...\n"
            "class XModel(LlamaForCausalLM): ...\n"
            "class X(PreTrainedTokenizerFast): ...\n"
            "def generate(model, **settings): ...\n"
        )


AUTO_MAP = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"}
AUTO_TOKENIZER = {"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]}


@pytest.mark.parametrize("model_type", ["x", "clip", "mistral"])
def test_code_beside_a_plain_model_runs_only_where_it_is_trusted(
    copied: Copied, witness: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anyone asked: a question on a terminal is answered by whoever sits there."""
    folder = copied("base")
    custom_code(folder, witness)
    changed(folder / "config.json", auto_map=AUTO_MAP, model_type=model_type)
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    loaders: list[Callable] = [
        lambda **how: QuietStarForCausalLM.from_base(folder, **how),
        lambda: load_model(folder, CPU, original=True),
        lambda: load_model(folder, CPU),
    ]
    for load in loaders:
        only_our_errors(load)
        assert not witness.exists()
    if model_type == "x":
        refused(loaders[0], "runs only with --trust_remote_code", CheckpointError)
        refused(loaders[1], "runs only with --trust_remote_code", CheckpointError)
        with suppress(QuietStarError):
            loaders[0](trust_remote_code=True)
        assert witness.exists(), "it does run where it is trusted"


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("model_type", ["x", "clip", None])
def test_code_beside_a_thinking_model_is_never_asked_for(
    copied: Copied, witness: Path, model_type: str | None, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("thinking")
    custom_code(folder, witness)
    fields = json.loads((folder / "config.json").read_text())
    (fields["base_config"] if inside else fields)["auto_map"] = AUTO_MAP
    fields["base_config"] |= {"model_type": model_type} if model_type else {}
    (folder / "config.json").write_text(json.dumps(fields))
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    for load in (lambda: QuietStarForCausalLM.from_pretrained(folder), lambda: load_model(folder, CPU)[0]):
        if model_type:
            refused(load)
        else:
            load().save_pretrained(folder / "again")
            assert "auto_map" not in (folder / "again/config.json").read_text(), "nor is it handed on"
    with suppress(QuietStarError, ValueError, OSError):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert not witness.exists()


@pytest.mark.parametrize("inside", ["config.json", "base_config"])
def test_code_that_a_config_within_a_config_points_at_is_not_asked_for(
    copied: Copied, witness: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would build the inner model without asking whether its code is trusted."""
    folder = copied("base" if inside == "config.json" else "thinking")
    custom_code(folder, witness)
    auto_map = dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), f"{folder}--modeling_x.XModel")
    fields = {"model_type": "fuyu", "text_config": {"model_type": "rag", "auto_map": auto_map}}
    (folder / "config.json").write_text(
        json.dumps(fields if inside == "config.json" else {"model_type": "quietstar", "base_config": fields})
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    loaders: list[Callable] = [lambda: QuietStarForCausalLM.from_base(folder), lambda: load_model(folder, CPU)]
    if inside == "base_config":
        loaders = [lambda: QuietStarForCausalLM.from_pretrained(folder), lambda: load_model(folder, CPU)]
    for load in loaders:
        only_our_errors(load)
        assert not witness.exists()
    if inside == "config.json":
        refused(loaders[0], "has auto_map in a nested config, which points at code", SettingsError)
        refused(lambda: read_config(str(folder)), "has auto_map in a nested config", SettingsError)
    else:
        refused(loaders[0])


def test_a_model_whose_base_came_with_code_is_one_to_load(copied: Copied) -> None:
    """Nothing that points at code in its config, at any depth, has an effect."""
    folder = copied("base")
    changed(folder / "config.json", inner={"auto_map": {"AutoModel": "a.B"}, "x": 1})
    QuietStarForCausalLM.from_base(folder, n_ahead=4, trust_remote_code=True).save_pretrained(folder / "thinking")
    loaded = QuietStarForCausalLM.from_pretrained(folder / "thinking")
    assert loaded.config.base_config.inner == {"x": 1}


@pytest.mark.parametrize("kind", ["thinking", "base"])
def test_adapters_beside_a_model_are_not_put_into_it(copied: Copied, kind: str) -> None:
    """transformers would; the search that adapters ask PEFT for may never finish."""
    folder = copied(kind)
    fields = {"peft_type": "LORA", "r": 2, "target_modules": "(([a-z_.]|[a-z_.0-9])+)+!"}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    for load in (lambda: LOADERS[kind](folder), lambda: load_model(folder, CPU, original=kind == "base")):
        refused(load, r"has adapters next to the model.*merge_and_unload", CheckpointError)


def test_what_lets_code_run_is_said_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("trust_remote_code: true")
    parser = make_parser("", "", UseArguments, config=True)
    config = ["--config", str(tmp_path / "options.yaml")]
    refused(lambda: parse(parser, config, UseArguments), "has trust_remote_code, which runs code from", SettingsError)
    (tmp_path / "options.yaml").write_text("trust_remote_code: false")
    assert not parse(parser, config, UseArguments)[0].trust_remote_code


def test_code_beside_a_tokenizer_runs_only_where_it_is_trusted(copied: Copied, witness: Path) -> None:
    folder = copied("thinking")
    custom_code(folder, witness)
    changed(folder / "tokenizer_config.json", auto_map=AUTO_TOKENIZER, tokenizer_class="X")
    only_our_errors(lambda: load_model(folder, CPU))
    assert not witness.exists()
    trusting = UseArguments(device="cpu", trust_remote_code=True)
    load_model(folder, trusting)
    assert witness.exists(), "it does run where it is trusted"


@given(data=st.data())
@settings(max_examples=40)
def test_whatever_a_tokenizer_says(
    folders: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    for file in (folders / "thinking").iterdir():
        os.link(file, folder / file.name)
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    fields = json.loads((folder / name).read_text())
    fields[data.draw(st.sampled_from([*fields, "auto_map", "chat_template", "padding_side"]))] = data.draw(VALUES)
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(fields) if data.draw(st.booleans()) else json.dumps(fields)[:-9])
    only_our_errors(lambda: load_model(folder, CPU))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch WITNESS') }}",
        "{{ self.__init__.__globals__ }}",
        "{% include 'tokenizer.json' %}",
        "{{ messages.append(messages) }}",
    ],
)
@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_runs_in_a_sandbox(copied: Copied, witness: Path, template: str, where: str) -> None:
    folder = copied("thinking")
    template = template.replace("WITNESS", str(witness))
    if where == "tokenizer_config.json":
        changed(folder / where, chat_template=template)
    else:
        (folder / where).write_text(template)
    _, tokenizer = load_model(folder, CPU)
    assert tokenizer.chat_template == template
    with pytest.raises(Exception, match=r"(?i)unsafe|not safe|no loader|undefined|immutable"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert not witness.exists()


def test_a_garbled_config_is_not_taken_for_a_plain_model(copied: Copied) -> None:
    """The message tells what is wrong with it, not that the model does not think."""
    folder = copied("thinking")
    changed(folder / "config.json", n_ahead="many")
    refused(lambda: load_model(folder, CPU), "n_ahead is 'many'", SettingsError)
    (folder / "config.json").write_text("{")
    refused(lambda: load_model(folder, CPU), "not a valid JSON", CheckpointError)
