"""A training run that is asked to leaves a report at each evaluation, and trains as it would without."""

from pathlib import Path
from typing import Any

import pytest

from quietstar.errors import SettingsError
from quietstar.inspection.trace import Trace
from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments

from ..tiny import tiny_model
from ..tiny_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXTS = ["What is it?", "Two dozen eggs.", "a"]
ROWS = [{"input_ids": TOKENIZER(text)["input_ids"]} for text in TEXTS]


def trainer_of(folder: Path, *, rows: Any = ROWS, held_out: Any = ROWS, **settings: Any) -> QuietStarTrainer:
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


def test_without_held_out_text_or_tokenizer_it_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", eval_report_rows=1)
    with pytest.raises(SettingsError, match="eval_report_rows was given for every evaluation, and no text is held out"):
        QuietStarTrainer(model, args, processing_class=TOKENIZER, train_dataset=ROWS)
    with pytest.raises(SettingsError, match="eval_report_rows was given, which needs a tokenizer; give"):
        QuietStarTrainer(model, args, train_dataset=ROWS, eval_dataset=ROWS)
    with pytest.raises(SettingsError, match="eval_report_rows is -1; give a number of at least 0"):
        QuietStarTrainingArguments(output_dir=str(tmp_path), eval_report_rows=-1)
