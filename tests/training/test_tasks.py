"""Direct tasks at every evaluation of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.errors import DataError, SettingsError
from quietstar.evaluation.direct import alphabet_of, encode, score_items
from quietstar.evaluation.scoring import Speaker
from quietstar.evaluation.tasks import TASKS, load_items
from quietstar.policy import ThinkPolicy
from quietstar.training import QuietStarTrainer
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer
from tests.training.test_trainer import arguments, rows

GSM8K = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(1, 8)]


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A few questions."""
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    return str(tmp_path / "gsm8k.jsonl")


def make(folder: Path, file: str, model: QuietStarForCausalLM | None = None, **how: Any) -> QuietStarTrainer:
    """A trainer that answers them."""
    settings = {"eval_tasks": ["gsm8k"], "eval_data": [f"gsm8k={file}"], "eval_steps": 1, "eval_limit": 5, **how}
    model = model or tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight=1.0, base={"vocab_size": 259})
    return QuietStarTrainer(
        model,
        arguments(folder, **settings),
        train_dataset=rows(9, 7, 8),
        eval_dataset=rows(6, 5, seed=1),
        processing_class=byte_tokenizer(),
    )


def expected(model: QuietStarForCausalLM, file: str, thinks: bool) -> tuple[float, float]:
    """By `quietstar evaluate`'s own functions."""
    tokenizer = byte_tokenizer()
    items = load_items(TASKS["gsm8k"], file, 5)
    sequences, _ = encode(items, tokenizer, alphabet_of(TASKS["gsm8k"], tokenizer))
    found = score_items(Speaker(model.eval(), ThinkPolicy.parse("always") if thinks else None), sequences, 2)
    return float(found.answer_probability.mean()), float(found.exact_match.float().mean())


@pytest.mark.parametrize("think_fraction", [1.0, 0.0], ids=["thinking", "original"])
def test_tasks_are_answered_in_the_trial_and_at_every_later_evaluation(
    think_fraction: float, tmp_path: Path, file: str
) -> None:
    """With thoughts, or the base model's own; the last figures are those of the trained model."""
    trainer = make(tmp_path / "run", file, think_fraction=think_fraction)
    before = expected(trainer.model, file, think_fraction > 0)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in lines] == [0, 1, 2]
    names = ("eval_gsm8k_answer_probability", "eval_gsm8k_exact_match")
    for line, figures in ((lines[0], before), (lines[-1], expected(trainer.model, file, think_fraction > 0))):
        assert tuple(line[name] for name in names) == pytest.approx(figures, rel=1e-3)
    assert lines[0][names[0]] != lines[-1][names[0]]
    assert all(line["eval_gsm8k_samples_per_second"] > 0 for line in lines)
    assert all(line["eval_gsm8k_runtime"] > 0 for line in lines)


def test_training_is_the_same_with_and_without_tasks(tmp_path: Path, file: str) -> None:
    """Answering uses no random numbers, and leaves the model in training mode."""
    models = []
    for name, how in (("without", {"eval_tasks": [], "eval_data": []}), ("with", {})):
        trainer = make(tmp_path / name, file, **how)  # sets the seed
        trainer.train()
        models.append(trainer.model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_asked_is_refused(tmp_path: Path, file: str) -> None:
    """Before a step is made."""
    with pytest.raises(SettingsError, match="choose from gsm8k"):
        arguments(tmp_path, eval_tasks=["gsm9k"])
    with pytest.raises(SettingsError, match="not among eval_tasks"):
        arguments(tmp_path, eval_data=[f"gsm8k={file}"])
    with pytest.raises(SettingsError, match="eval_limit"):
        arguments(tmp_path, eval_limit=0)
    with pytest.raises(DataError, match="does not exist"):
        make(tmp_path, str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(SettingsError, match="no text is held out"):
        QuietStarTrainer(
            tiny_model(n_ahead=4, base={"vocab_size": 259}),
            arguments(tmp_path, eval_tasks=["gsm8k"], eval_data=[f"gsm8k={file}"]),
            train_dataset=rows(5),
            processing_class=byte_tokenizer(),
        )


def test_messages_name_the_options_of_training(tmp_path: Path, file: str) -> None:
    with pytest.raises(DataError, match=r"give a local file instead: --eval_data gsm8k=FILE$"):
        make(tmp_path / "run", file, eval_data=[])
    with pytest.raises(SettingsError, match=r"^eval_data is 'gsm8k'; give a task and a file"):
        make(tmp_path / "run", file, eval_data=["gsm8k"])
    with pytest.raises(SettingsError, match=r"choose from gsm8k, csqa, piqa, siqa$"):
        make(tmp_path / "run", file, eval_tasks=["arc_easy"])
