"""A training run that is asked to leaves a report at each evaluation, and trains as it would without."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quietstar.errors import SettingsError
from quietstar.inspection.trace import Trace
from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXTS = ["What is it?", "Two dozen eggs.", "a"]
ROWS = [{"input_ids": TOKENIZER(text)["input_ids"]} for text in TEXTS]


def trainer_of(folder: Path, *, rows: Any = ROWS, held_out: Any = ROWS, **settings: Any) -> QuietStarTrainer:
    model = tiny_model(base={"vocab_size": len(TOKENIZER)}, n_ahead=4, n_ahead_talk=2)
    how = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "thoughts_shown": 0, "save_strategy": "no"}
    args = QuietStarTrainingArguments(output_dir=str(folder), **how, **settings)
    return QuietStarTrainer(model, args, processing_class=TOKENIZER, train_dataset=rows, eval_dataset=held_out)


def train(folder: Path, **settings: Any) -> QuietStarTrainer:
    how = {"max_steps": 2, "eval_steps": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.01}
    trainer = trainer_of(folder, **how, **settings)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuietStarTrainer]:
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder, eval_report_rows=2)


def test_every_evaluation_leaves_a_report(run: tuple[Path, QuietStarTrainer]) -> None:
    folder, trainer = run
    steps = sorted(path.name for path in (folder / "reports").iterdir())
    assert steps == ["step-000000", "step-000001", "step-000002"]
    traces = [Trace.load(folder / "reports" / step) for step in steps]
    for step, found in enumerate(traces):
        assert found.model == f"{folder.name}, step {step}"
        assert "".join(found.columns["piece"]) == "".join(TEXTS[:2])
        assert (folder / "reports" / steps[step] / "report.html").stat().st_size > 10_000
    assert traces[0].columns["gain"] != traces[-1].columns["gain"]
    # the first report is of the untrained model: the later ones compare with it
    untrained = [values[0] if values else None for values in traces[0].columns["base_logprob"]]
    assert traces[0].columns["before_logprob"] == [None] * len(untrained)
    for found in traces[1:]:
        assert found.columns["before_logprob"] == untrained
        assert found.settings["before"] == "this run's step 0"
    assert traces[-1].summary.base_over_before is not None
    assert traces[-1].summary.base_over_before.value != 0
    last = trainer.model.eval().inspect(TEXTS[:2], TOKENIZER)
    assert last.columns["thought_ids"] == traces[-1].columns["thought_ids"]


def test_with_adapters_every_report_compares_with_the_base_model_itself(tmp_path: Path) -> None:
    model = tiny_model(base={"vocab_size": len(TOKENIZER)}, n_ahead=4, n_ahead_talk=2, lora={"r": 2})
    how = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "thoughts_shown": 0, "save_strategy": "no"}
    args = QuietStarTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, eval_steps=2, learning_rate=0.01, eval_report_rows=2, **how
    )
    QuietStarTrainer(model, args, processing_class=TOKENIZER, train_dataset=ROWS, eval_dataset=ROWS).train()
    first, last = (Trace.load(tmp_path / "reports" / f"step-00000{step}").columns for step in (0, 2))
    assert first["before_logprob"] == last["before_logprob"] != [None] * len(last["before_logprob"])
    assert first["before_logprob"] == [values[0] if values else None for values in first["base_logprob"]]
    assert first["base_logprob"] != last["base_logprob"]


def test_a_first_report_of_other_rows_is_not_compared_with(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_report_rows=1)
    trainer.evaluate()
    for rows, is_known in ((ROWS, True), (ROWS[1:], False)):
        later = trainer_of(tmp_path, held_out=rows, eval_report_rows=1)
        later.state.global_step = 5
        later.evaluate()
        found = Trace.load(tmp_path / "reports" / "step-000005").columns["before_logprob"]
        assert any(each is not None for each in found) == is_known


def test_training_goes_on_as_it_would_without(run: tuple[Path, QuietStarTrainer], tmp_path: Path) -> None:
    _, trainer = run
    without = train(tmp_path)
    assert not (tmp_path / "reports").exists()
    for (name, a), b in zip(trainer.model.named_parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert trainer.model.training == without.model.training


def test_several_held_out_texts_and_a_second_evaluation_leave_one_report_a_step(tmp_path: Path) -> None:
    texts = {"first": ROWS[:1], "second": ROWS[1:]}
    trainer = trainer_of(tmp_path, held_out=texts, eval_report_rows=1)
    trainer.evaluate()
    (folder,) = (tmp_path / "reports").iterdir()
    assert "".join(Trace.load(folder).columns["piece"]) == TEXTS[0]
    before = (folder / "report.html").stat().st_mtime_ns
    trainer.evaluate()
    assert (folder / "report.html").stat().st_mtime_ns == before


def test_only_what_is_learned_from_is_thought_about(tmp_path: Path) -> None:
    ids = ROWS[0]["input_ids"]
    rows = [{"input_ids": ids, "labels": [-100] * 4 + ids[4:]}]
    trainer_of(tmp_path, rows=rows, held_out=rows, eval_report_rows=1).evaluate()
    found = Trace.load(tmp_path / "reports" / "step-000000").columns
    assert found["thought"] == [False] * 3 + [True] * (len(ids) - 4) + [False]


@pytest.mark.parametrize("gap", [slice(0, 0), slice(0, 4), slice(6, 8)])
def test_the_reward_is_that_of_the_evaluation(tmp_path: Path, gap: slice) -> None:
    """Over positions of which all labels that it looks at are there."""
    ids = TOKENIZER("What is it that eggs are?")["input_ids"]
    labels = list(ids)
    labels[gap] = [-100] * len(ids[gap])
    rows = [{"input_ids": ids, "labels": labels}]
    figures = trainer_of(tmp_path, rows=rows, held_out=rows, eval_report_rows=1).evaluate()
    found = Trace.load(tmp_path / "reports" / "step-000000")
    assert found.summary.reward is not None
    assert found.summary.reward.value == pytest.approx(figures["eval_reward_mean"], abs=1e-4)
    assert found.columns["next_id"][:-1] == ids[1:]


def test_without_held_out_text_or_tokenizer_it_is_refused(tmp_path: Path) -> None:
    model = tiny_model(base={"vocab_size": 259})
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", eval_report_rows=1)
    with pytest.raises(SettingsError, match="eval_report_rows was given for every evaluation, and no text is held out"):
        QuietStarTrainer(model, args, processing_class=TOKENIZER, train_dataset=ROWS)
    with pytest.raises(SettingsError, match="eval_report_rows was given, which needs a tokenizer; give"):
        QuietStarTrainer(model, args, train_dataset=ROWS, eval_dataset=ROWS)
    with pytest.raises(SettingsError, match="eval_report_rows is -1; give a number of at least 0"):
        QuietStarTrainingArguments(output_dir=str(tmp_path), eval_report_rows=-1)
