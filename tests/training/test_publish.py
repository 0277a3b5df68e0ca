"""A finished folder goes to the hub once, without its checkpoints; a hub that refuses is one line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quietstar.errors import CheckpointError, SettingsError
from quietstar.training import QuietStarTrainer
from quietstar.training.curriculum import CurriculumArguments
from quietstar.training.run import run_training
from quietstar.training.stages import run_curriculum
from tests.training.test_card import arguments, pieces


@pytest.fixture
def hub(monkeypatch) -> list[Any]:
    """What was asked of the hub, in order."""
    asked: list[Any] = []

    def create_repo(self, name: str, **how: Any) -> Any:
        asked.append(("create", name))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], **how: Any) -> None:
        files = sorted(path.name for path in Path(folder_path).iterdir() if path.is_file())
        asked.append(("upload", repo_id, files))

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    return asked


def test_a_plain_model_is_uploaded_once_and_whole(inputs, tmp_path, hub):
    """Its checkpoints are not: they are of a thinking model with its thoughts off."""
    how = dict(push_to_hub=True, save_strategy="steps", save_steps=1)
    model, data, args = pieces(inputs, tmp_path / "run", {"original": True}, **how)
    run_training(model, data, args)
    (first, (kind, name, files)) = hub
    assert (first, kind, name) == (("create", "run"), "upload", "me/run")
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json", "results.json"} <= set(files)
    assert args.push_to_hub is True


def test_a_curriculum_is_uploaded_at_its_end(inputs, tmp_path, hub):
    how = dict(push_to_hub=True, hub_model_id="thoughts", save_strategy="steps")
    model, data, args = pieces(inputs, tmp_path / "run", policy_weight=1.0, **how)
    of = CurriculumArguments(curriculum="5:2,4:2", curriculum_steps="1,1", curriculum_learning_rates="5e-2,1e-2")
    run_curriculum(model, data, args, of)
    assert [each[:2] for each in hub] == [("create", "thoughts"), ("upload", "me/thoughts")]


def test_a_hub_that_cannot_be_reached_is_told_before_the_run(inputs, tmp_path):
    """HF_HUB_OFFLINE is set in tests."""
    with pytest.raises(SettingsError, match=r"--push_to_hub needs the repository run on the hub, which cannot be made"):
        run_training(*pieces(inputs, tmp_path / "run", {"original": True}, push_to_hub=True))
    assert not (tmp_path / "run").exists()


def test_a_thinking_run_is_told_before_it_begins(inputs, tmp_path):
    with pytest.raises(SettingsError, match=r"--push_to_hub needs the repository run on the hub, which cannot be made"):
        run_training(*pieces(inputs, tmp_path / "run", n_ahead=4, n_ahead_talk=2, push_to_hub=True))


def test_a_trainer_of_ones_own_is_told_too(inputs, tmp_path, monkeypatch):
    def fail(*args: Any, **how: Any) -> None:
        raise ConnectionError("the network is down\nafter 5 tries")

    trainer = QuietStarTrainer(inputs / "base", arguments(tmp_path / "run", n_ahead=4, n_ahead_talk=2))
    with pytest.raises(SettingsError, match=r"--push_to_hub needs the repository run on the hub, which cannot be made"):
        trainer.push_to_hub()
    monkeypatch.setattr("transformers.trainer.Trainer.init_hf_repo", lambda self, **how: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", fail)
    with pytest.raises(CheckpointError, match=r"saved in .*run, but cannot be uploaded \(the network is down\); try"):
        trainer.push_to_hub()


def test_an_upload_that_fails_leaves_the_model(inputs, tmp_path, hub, monkeypatch):
    def fail(*args: Any, **how: Any) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", fail)
    words = (
        r"the model is saved in .*run, but cannot be uploaded \(the network is down\); try again with hf upload me/run"
    )
    with pytest.raises(CheckpointError, match=words):
        run_training(*pieces(inputs, tmp_path / "run", {"original": True}, push_to_hub=True))
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_thinking_run_that_cannot_upload_keeps_all_that_it_has(inputs, tmp_path, hub, monkeypatch):
    def fail(*args: Any, **how: Any) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr("transformers.trainer.Trainer.init_hf_repo", lambda self, **how: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", fail)
    with pytest.raises(CheckpointError, match=r"saved in .*run, but cannot be uploaded"):
        run_training(*pieces(inputs, tmp_path / "run", n_ahead=4, n_ahead_talk=2, push_to_hub=True))
    assert {"README.md", "results.json", "model.safetensors"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_a_run_that_fails_uploads_nothing(inputs, tmp_path, hub):
    model, data, args = pieces(inputs, tmp_path / "run", {"original": True}, push_to_hub=True)
    data.dataset = str(tmp_path / "missing.jsonl")
    with pytest.raises(Exception, match="missing"):
        run_training(model, data, args)
    assert [each[0] for each in hub] == ["create"]
    assert args.push_to_hub is True
