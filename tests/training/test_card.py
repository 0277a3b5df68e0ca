"""The card of a trained model says what the run's own figures say, and the hub's classes read it."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from quietstar.training import DataArguments, QuietStarTrainer, QuietStarTrainingArguments
from quietstar.training.card import OURS, write_card
from quietstar.training.curriculum import CurriculumArguments
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training
from quietstar.training.stages import run_curriculum
from tests.tiny_tokenizer import thinking_folders, tiny_folder

HELD_OUT = {
    "eval_nll_before": 2.5,
    "eval_base_nll": 2.25,
    "eval_drift": -0.25,
    "eval_drift_low": -0.375,
    "eval_drift_high": -0.125,
    "eval_talk_nll_0": 2.125,
    "eval_thought_gain": 0.125,
    "eval_thought_gain_low": 0.0625,
    "eval_thought_gain_high": 0.25,
}


def arguments(folder: Path, **settings: Any) -> QuietStarTrainingArguments:
    chosen = dict(max_steps=2, per_device_train_batch_size=2, eval_steps=1, save_strategy="no", use_cpu=True)
    return QuietStarTrainingArguments(
        output_dir=str(folder), thoughts_shown=0, report_to="none", disable_tqdm=True, **(chosen | settings)
    )


def pieces(inputs: Path, folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, Any, Any]:
    return (
        ModelArguments(**({"model": str(inputs / "base")} | (model or {}))),
        DataArguments(dataset=str(inputs / "texts"), eval_size=4, max_length=12, streaming=False),
        arguments(folder, **settings),
    )


def test_a_run_writes_the_card_of_its_thinking_model(inputs, tmp_path):
    figures = run_training(*pieces(inputs, tmp_path / "run", n_ahead=4, n_ahead_talk=2))
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.tags) == (
        "quietstar",
        "text-generation",
        ["quiet-star"],
    )
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {
        "nats a token, without thoughts": round(figures["eval_base_nll"], 4),
        "nats a token, with thoughts": round(figures["eval_talk_nll_0"], 4),
    }
    assert "a hidden thought of up to 2 tokens" in card.text
    assert "| n_ahead | `4` |" in card.text
    assert "| dataset | `texts` |" in card.text
    assert f"| before training | {figures['eval_nll_before']:.4f} | |" in card.text
    assert str(tmp_path) not in str(card)
    assert str(inputs) not in str(card)


@pytest.mark.parametrize("kind", ["base", "thinking"])
def test_what_the_card_says_to_run_runs(tmp_path, capsys, kind):
    thinking_folders(tmp_path, n_ahead=4)
    write_card(tmp_path / kind, {}, {})
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / kind / "README.md").read_text(), re.DOTALL)
    exec(code.replace("THIS_MODEL", str(tmp_path / kind)), {})
    assert capsys.readouterr().out.startswith("Two dozen eggs make")


@pytest.mark.parametrize("merge", [False, True])
def test_a_model_with_merged_adapters_has_one_too(inputs, tmp_path, merge):
    model = {"lora": True, "lora_r": 2, "merge": merge}
    run_training(*pieces(inputs, tmp_path / "run", model, n_ahead=4, n_ahead_talk=2))
    card = (tmp_path / "run" / "README.md").read_text()
    assert ("| lora | `True` |\n| lora_r | `2` |" if merge else "| lora | `r 2, lora_alpha 32` |") in card
    assert ("lora_r" in card) == merge


def test_a_plain_model_needs_no_code_of_ours(inputs, tmp_path):
    figures = run_training(*pieces(inputs, tmp_path / "run", {"original": True}))
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.library_name == "transformers"
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("nats a token", round(figures["eval_base_nll"], 4))
    assert "import quietstar" not in card.text
    assert "n_ahead" not in card.text
    assert "An ordinary language model, made of base and trained without thoughts" in card.text


def test_stages_are_listed_and_compared_with_the_model_before_the_first(inputs, tmp_path):
    model, data, args = pieces(inputs, tmp_path / "run", policy_weight=1.0, save_strategy="steps")
    of = CurriculumArguments(curriculum="5:2,4:2", curriculum_steps="2,1", curriculum_learning_rates="5e-2,1e-2")
    figures = run_curriculum(model, data, args, of)
    text = ModelCard.load(tmp_path / "run" / "README.md").text
    assert "- stage 1 of 2: n_ahead 5, n_ahead_talk 2, 2 steps" in text
    assert f"| before training | {figures['eval_nll_before']:.4f} | |" in text
    assert "made of base:" in text
    assert "learning_rate" not in text
    file = tmp_path / "run" / "README.md"
    file.write_text("my own words")
    model, data, args = pieces(inputs, tmp_path / "run", policy_weight=1.0, save_strategy="steps", resume=True)
    run_curriculum(model, data, args, of)
    assert file.read_text() == "my own words"
    assert "made of stage-1:" in (tmp_path / "run" / "stage-2" / "README.md").read_text()


def test_settings_that_were_not_used_are_left_out(tmp_path):
    settings = {"lora": False, "lora_r": 16, "seed": 0, "max_steps": 5, "num_train_epochs": 3.0, "template": "a|b\n"}
    write_card(tiny_folder(tmp_path / "m"), settings, {"eval_base_nll": float("nan")})
    text = (tmp_path / "m" / "README.md").read_text()
    assert "| seed | `0` |" in text
    assert "| template | `a\\|b\\n` |" in text
    assert not [name for name in ("lora", "epochs", "model-index") if name in text]
    assert "made of a model without a name and trained without thoughts" in text


def test_a_trainer_of_ones_own_writes_one_and_keeps_anothers(inputs, tmp_path):
    trainer = QuietStarTrainer(str(inputs / "base"), arguments(tmp_path / "run", n_ahead=4, n_ahead_talk=2))
    trainer.save_model(str(tmp_path / "there"))
    file = tmp_path / "there" / "README.md"
    assert OURS in file.read_text()
    assert "## Held-out text" not in file.read_text(), "nothing was measured"
    file.write_text("my own words")
    trainer.save_model(str(tmp_path / "there"))
    assert file.read_text() == "my own words"


def test_intervals_are_of_differences_and_less_is_better(tmp_path):
    write_card(tiny_folder(tmp_path / "m"), {"model": str(tmp_path / "m")}, HELD_OUT, notes=["And a note."])
    text = (tmp_path / "m" / "README.md").read_text()
    assert "| after training, without thoughts | 2.2500 | -0.2500 (-0.3750 to -0.1250) beside before |" in text
    assert "| after training, with thoughts | 2.1250 | -0.1250 (-0.2500 to -0.0625) beside without |" in text
    assert "\n\nAnd a note.\n" in text


def test_the_base_model_and_its_licence_are_passed_on(tmp_path, monkeypatch):
    """From the base model's card on the hub to the model's, and from that to the next one's."""
    (tmp_path / "card.md").write_text("---\nlicense: apache-2.0\nbase_model: before/that\n---\n\n# A base\n")
    monkeypatch.setattr("quietstar.base.origin.hf_hub_download", lambda name, file: str(tmp_path / "card.md"))
    for name, made_of in (("first", "some/base"), ("second", str(tmp_path / "first"))):
        write_card(tiny_folder(tmp_path / name), {"model": made_of, "dataset": "some/texts"}, {})
        data = ModelCard.load(tmp_path / name / "README.md").data
        assert (data.base_model, data.license, data.datasets) == ("some/base", "apache-2.0", "some/texts")
    text = (tmp_path / "second" / "README.md").read_text()
    assert "made of [some/base](https://huggingface.co/some/base)" in text
    assert "apache-2.0: the licence of some/base also holds" in text
