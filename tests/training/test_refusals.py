"""What transformers' Trainer takes and ours cannot is refused in one line, at once."""

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import AutoModelForCausalLM, TrainingArguments

from quietstar import QuietStarForCausalLM, QuietStarTrainer, QuietStarTrainingArguments
from quietstar.errors import SettingsError
from quietstar.training.refusals import FIGURE, check_supported, installed
from tests.tiny_tokenizer import byte_tokenizer
from tests.training.test_trainer import LENGTHS, model_of, rows

GIVEN = {
    "compute_metrics": (lambda prediction: {}, "compute_metrics was given, and evaluations keep no predictions"),
    "preprocess_logits_for_metrics": (lambda logits, labels: logits, "evaluations keep no predictions"),
    "compute_loss_func": (lambda *args: 0, "compute_loss_func was given, and the losses are the method's"),
    "model_init": (lambda: None, "model_init was given, and the model comes from model"),
    "train_dataset": (
        [{"text": "abc"}],
        "has rows of text, and needs input_ids; make them with",
    ),
    "processing_class": (byte_tokenizer(), r"the tokenizer has tokens up to id \d+, but the model has \d+ embeddings"),
}
ARGUMENTS = {
    "label_smoothing_factor": (0.1, "label_smoothing_factor is 0.1, and losses are of true tokens"),
    "dry_run": (True, "dry_run is what quietstar train does"),
    "torch_compile": (True, "torch_compile is on, and a training step makes gradients together with its losses"),
    "metric_for_best_model": ("eval_foo", "metric_for_best_model is eval_foo, and evaluations have no such figure"),
}


def arguments(tmp_path, **settings):
    return QuietStarTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("name", GIVEN)
def test_arguments_of_the_trainer(tmp_path, name):
    value, words = GIVEN[name]
    with pytest.raises(SettingsError, match=words):
        QuietStarTrainer(model_of(), arguments(tmp_path), **{name: value})


@pytest.mark.parametrize("name", ARGUMENTS)
def test_training_arguments(tmp_path, name):
    value, words = ARGUMENTS[name]
    with pytest.raises(SettingsError, match=words):
        check_supported(arguments(tmp_path, **{name: value}), {})


def test_arguments_of_another_trainer(tmp_path):
    with pytest.raises(SettingsError, match="args is TrainingArguments; give QuietStarTrainingArguments"):
        QuietStarTrainer(model_of(), TrainingArguments(output_dir=str(tmp_path)))


def test_the_name_of_a_tokenizer(tmp_path):
    with pytest.raises(SettingsError, match="the tokenizer is a str; give one of transformers"):
        QuietStarTrainer(model_of(), arguments(tmp_path), processing_class="here")


def test_rows_of_one_token(tmp_path):
    with pytest.raises(SettingsError, match="rows of one token, after which there is nothing to predict"):
        check_supported(arguments(tmp_path), {"train_dataset": [{"input_ids": [3]}] * 3})
    check_supported(arguments(tmp_path), {"train_dataset": [{"input_ids": [3]}, {"input_ids": [3, 4]}]})


def test_no_rows(tmp_path):
    with pytest.raises(SettingsError, match="train_dataset has no rows"):
        check_supported(arguments(tmp_path), {"train_dataset": []})


def test_a_stream_is_not_read(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            raise AssertionError("a stream is read once")

    check_supported(arguments(tmp_path), {"train_dataset": Stream()})


def test_every_figure_of_an_evaluation_can_choose_the_best_model(tmp_path):
    run = QuietStarTrainer(model_of(), arguments(tmp_path), eval_dataset=rows(*LENGTHS))
    speed = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    names = [name.removeprefix("eval_") for name in run.evaluate() if name.startswith("eval_")]
    assert len(names) > 10
    assert [name for name in names if not FIGURE.fullmatch(name)] == [name for name in names if name in speed]


@pytest.mark.parametrize("to", ["from_base", "trainer"])
def test_a_peft_model_says_what_to_do(tmp_path, to):
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    base_lm = model_of().base_lm
    model = peft.get_peft_model(base_lm, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(SettingsError, match=r"is a PeftModel, .*give model\.merge_and_unload\(\)"):
        QuietStarForCausalLM.from_base(model) if to == "from_base" else QuietStarTrainer(model, arguments(tmp_path))
    merged = QuietStarForCausalLM.from_base(model.merge_and_unload(), n_ahead=4)
    assert torch.isfinite(merged(torch.tensor([[3, 4, 5]])).logits).all()
    assert isinstance(merged.base_lm, type(base_lm))


@pytest.mark.parametrize("model", [None, 3])
def test_no_model(tmp_path, model):
    with pytest.raises(
        SettingsError, match=r"the base model is a .*; give a model of transformers, or the name of one"
    ):
        QuietStarTrainer(model, arguments(tmp_path))


def test_an_optimizer_that_is_not_installed():
    with pytest.raises(SettingsError, match="optim is galore_adamw: pip install it"), installed("galore_adamw"):
        raise ImportError("pip install it\nand more")


def test_a_model_of_transformers_is_still_taken(tmp_path):
    config = model_of().base_lm.config
    QuietStarTrainer(AutoModelForCausalLM.from_config(config), arguments(tmp_path, n_ahead=4))
