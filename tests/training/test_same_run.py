"""A run that is resumed is known by what its files hold, and by the settings that decide what is learned."""

import dataclasses
import json
import os
import shutil

import pytest
import transformers
from packaging.version import Version

from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.training import checkpoints, same_run
from quietstar.training.arguments import METHOD_SETTINGS, QuietStarTrainingArguments
from quietstar.training.same_run import FREE, TRAINING, refuse_changes, what_matters
from tests.training.test_killed import train


def test_no_argument_both_matters_and_does_not() -> None:
    assert FREE.isdisjoint(TRAINING)
    assert FREE.isdisjoint(METHOD_SETTINGS)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24"), reason="has other arguments")
def test_of_every_argument_it_is_said_whether_it_matters() -> None:
    """One that is new belongs in TRAINING, METHOD_SETTINGS or FREE."""
    names = {field.name for field in dataclasses.fields(QuietStarTrainingArguments)}
    assert names - FREE - {*TRAINING, *METHOD_SETTINGS} == set()


NOW = {"seed": 1, "dataset": "a.jsonl", "model": "m", "row_digest": "x", "weight_digest": "w", "streaming": False}


@pytest.mark.parametrize(
    "before",
    [
        NOW,
        NOW | {"dataset": "./a.jsonl", "model": "m/"},
        {"seed": 1, "dataset": "a.jsonl", "model": "m", "streaming": None},
        {"seed": 1, "dataloader_num_workers": 1},
        NOW | {"a_setting_of_another_version": 3},
    ],
)
def test_the_same_run(before: dict) -> None:
    refuse_changes(before, NOW | {"dataloader_num_workers": 0}, "checkpoint-1")


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (NOW | {"row_digest": "y"}, "the rows to train on have changed;"),
        (NOW | {"row_digest": "y", "dataset": "b"}, "rows to train on .*dataset is 'a.jsonl' and was 'b'"),
        (NOW | {"weight_digest": "y", "dataset": "b"}, "settings: the weights of the model have changed;"),
        (NOW | {"weight_digest": "y", "model": "n"}, "weights of the model .*, model is 'm' and was 'n';"),
        (NOW | {"weight_digest": None, "model": "n"}, "model is 'm' and was 'n'"),
        ({"dataset": "./a.jsonl"}, r"dataset is 'a.jsonl' and was './a.jsonl'"),
        (NOW | {"seed": 2}, "seed is 1 and was 2"),
        ({"dataloader_num_workers": 2}, "dataloader_num_workers is 0 and was 2"),
    ],
)
def test_another_run(before: dict, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        refuse_changes(before, NOW | {"dataloader_num_workers": 0}, "checkpoint-1")


@pytest.mark.parametrize(("schedule", "matters"), [("cosine", True), ("linear", True), ("constant_with_warmup", False)])
def test_the_last_step_matters_where_the_learning_rate_moves_towards_it(schedule, matters, tmp_path):
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), lr_scheduler_type=schedule, max_steps=7, use_cpu=True)
    found = what_matters(args, QuietStarConfig(), {})
    assert found.get("max_steps") == (7 if matters else None)


@pytest.mark.parametrize("streaming", [False, True])
def test_contents_decide_and_spelling_does_not(inputs, tmp_path, streaming, monkeypatch, caplog):
    """The same files elsewhere are the same; other rows in a file of the same name are not."""
    folder, texts = tmp_path / "run", tmp_path / "texts"
    shutil.copytree(inputs / "texts", texts)
    how = dict(streaming=streaming, save_steps=2, dataset=str(texts))
    train(inputs, folder, max_steps=2, **how)
    os.rename(texts, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    more = {"dataloader_num_workers": 1} if streaming else {"dataloader_num_workers": 2}
    train(inputs, folder, **how | {"max_steps": 4, "dataset": "./moved/"} | more)
    caplog.set_level("INFO", "quietstar")
    file = next(path for path in sorted((tmp_path / "moved").rglob("*")) if path.is_file())
    whole = file.read_text()
    file.write_text(whole.replace("a", "b"))
    with pytest.raises(SettingsError, match="to train on have changed"):
        train(inputs, folder, **how | {"max_steps": 6, "dataset": "moved"})
    file.write_text(whole)
    assert "compared by their names" not in caplog.text

    # a checkpoint of an earlier version
    marker = checkpoints.latest(folder) / checkpoints.MARKER
    about = json.loads(marker.read_text())
    for name in same_run.CONTENTS:
        about["settings"].pop(name, None)
    marker.write_text(json.dumps(about))
    with pytest.raises(SettingsError, match=r"dataset is 'moved' and was '\./moved/'"):
        train(inputs, folder, **how | {"max_steps": 6, "dataset": "moved"})
    assert caplog.text.count("compared only by their names") == 1
    train(inputs, folder, **how | {"max_steps": 6, "dataset": "./moved/"})
