"""Each tracker gets the figures of a run and its reports of thoughts; a run that is resumed goes on in the same one.

What was written is read back: by TensorBoard's reader, MLflow's client, trackio's command and wandb's own records.
"""

import json
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TrackioCallback, WandbCallback

from quietstar.errors import InterruptedRunError, SettingsError
from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments, trackers
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra: trackers)")
pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra: trackers)")
pytest.importorskip("wandb", reason="wandb is not installed (extra: trackers)")

TOKENIZER = byte_tokenizer()
ROWS = [{"input_ids": TOKENIZER(text)["input_ids"]} for text in ("What is it?", "Two dozen eggs.", "a", "b or c")]
FIGURES = ("loss", "nll", "base_nll", "talk_nll_0", "thought_gain", "reward_mean", "mixing_weight", "thought_entropy")
HELD_OUT = ("loss", "base_nll", "talk_nll_0", "nll_before", "drift", "gain", "thought_gain_low", "distinct_thoughts")
"""names of docs/method.md"""
ALL = ["tensorboard", "wandb", "mlflow", "trackio"]


def trainer_of(folder: Path, report_to: list[str], **settings: Any) -> QuietStarTrainer:
    model = tiny_model(base={"vocab_size": len(TOKENIZER)}, n_ahead=4, n_ahead_talk=2)
    how: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "thoughts_shown": 0, "logging_steps": 1}
    how |= {"eval_steps": 2, "save_steps": 2, "save_total_limit": 9, "eval_report_rows": 1, "max_steps": 4}
    how |= {"gradient_accumulation_steps": 1, "learning_rate": 0.01, "warmup_steps": 0, "report_to": report_to}
    args = QuietStarTrainingArguments(output_dir=str(folder), **how | settings)
    return QuietStarTrainer(model, args, processing_class=TOKENIZER, train_dataset=ROWS, eval_dataset=ROWS[:2])


@pytest.fixture(scope="module", autouse=True)
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which all trackers keep what they get: no network."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("MLFLOW_TRACKING_URI", f"file://{folder}/mlflow")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        yield folder


class Crash(TrainerCallback):
    """Ends a run after a step without a word to anyone."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def run(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that crashed after its third step, and was resumed from its second; with its lines of figures."""
    folder = tmp_path_factory.mktemp("run")
    crashed = trainer_of(folder, list(ALL))
    crashed.add_callback(Crash)
    with pytest.raises(ZeroDivisionError), crashed.tracked.ending():
        crashed.train()
    status = mlflow.MlflowClient().get_run(crashed.tracked.runs["MLflow"]).info.status
    resumed = trainer_of(folder, list(ALL))
    with resumed.tracked.ending():
        resumed.train(resume_from_checkpoint=True)
    markers = [json.loads((folder / f"checkpoint-{step}/complete.json").read_text())["trackers"] for step in (2, 4)]
    assert markers[0] == markers[1], "one run in each tracker"
    training = {line["step"]: line for line in resumed.state.log_history if "loss" in line}
    held_out = {line["step"]: line for line in resumed.state.log_history if "eval_loss" in line}
    assert (list(training), list(held_out)) == ([1, 2, 3, 4], [0, 2, 4])
    return SimpleNamespace(folder=folder, training=training, held_out=held_out, ids=markers[0], status=status)


def expected(run: Any, of: str) -> Iterator[tuple[str, dict[int, float]]]:
    """Names of docs/method.md, and step -> value of each: as the run's own log has them."""
    names, lines, prefix = (HELD_OUT, run.held_out, "eval_") if of == "eval" else (FIGURES, run.training, "")
    for name in names:
        points = {step: line[prefix + name] for step, line in lines.items() if prefix + name in line}
        assert len(points) >= 2, name
        yield name, points


def test_tensorboard(run: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run.folder / "runs").iterdir()
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    for of in ("train", "eval"):
        for name, points in expected(run, of):
            events = found.Scalars(f"{of}/{name}")
            assert [event.step for event in events] == list(points), "the step after the checkpoint is there once"
            assert [event.value for event in events] == pytest.approx(list(points.values()), rel=1e-5), name
    texts = {event.step: event.tensor_proto.string_val[0].decode() for event in found.Tensors("thoughts/text_summary")}
    assert list(texts) == [0, 2, 4]
    for step, text in texts.items():
        assert text == (run.folder / "reports" / f"step-{step:06}" / "summary.md").read_text()


def test_wandb(run: Any, stores: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(stores.glob(f"wandb/offline-run-*-{run.ids['Wandb']}/*.wandb"))
    assert len(files) == 2, "two sessions of one run, which `wandb sync` puts together"
    lines, artifacts = [], []
    for file in files:
        for data in records(file):
            record = Record.FromString(data)
            if record.HasField("history"):
                lines.append(
                    {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                )
            if record.HasField("artifact"):
                artifacts.append(record.artifact)
    for of in ("train", "eval"):
        for name, points in expected(run, of):
            key = f"{of}/{name}"
            assert {line["train/global_step"]: line[key] for line in lines if key in line} == points
    assert [artifact.name for artifact in artifacts] == [f"thoughts-{run.ids['Wandb']}"] * 3
    aliases = [set(artifact.aliases) - {"latest"} for artifact in artifacts]
    assert aliases == [{"step-000000"}, {"step-000002"}, {"step-000004"}]
    for artifact in artifacts:
        assert {"report.html", "summary.md"} <= {entry.path for entry in artifact.manifest.contents}


def records(file: Path) -> Iterator[bytes]:
    """Records of wandb's file: LevelDB's log format, in blocks of 32 KiB after a header of seven bytes."""
    data, at, whole = file.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, part = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or last
            yield whole
            whole = b""


def test_mlflow(run: Any) -> None:
    client, id = mlflow.MlflowClient(), run.ids["MLflow"]
    assert (run.status, client.get_run(id).info.status) == ("FAILED", "FINISHED")
    assert client.get_run(id).data.params["learning_rate"] == "0.01"
    for of, prefix in (("train", ""), ("eval", "eval_")):
        for name, points in expected(run, of):
            assert {point.step: point.value for point in client.get_metric_history(id, prefix + name)} == points
    for step in (0, 2, 4):
        folder = f"reports/step-{step:06}"
        assert {f"{folder}/report.html", f"{folder}/summary.md"} <= {
            file.path for file in client.list_artifacts(id, folder)
        }


def test_trackio(run: Any, stores: Path) -> None:
    name = run.ids["Trackio"]
    assert name.startswith(f"{run.folder.name}-")
    with closing(sqlite3.connect(stores / "trackio" / "huggingface.db")) as database:
        found = database.execute("SELECT run_id, run_name, metrics FROM metrics").fetchall()
    assert len({(id, of) for id, of, _ in found}) == 1, "one run"
    lines = [json.loads(metrics) for _, of, metrics in found if of == name]
    for of in ("train", "eval"):
        for figure, points in expected(run, of):
            key = f"{of}/{figure}"
            assert {line["train/global_step"]: line[key] for line in lines if key in line} == points
    words = ("list", "artifacts", "--project", "huggingface", "--json")
    said = subprocess.run([sys.executable, "-m", "trackio.cli", *words], capture_output=True, text=True, check=True)
    (artifact,) = json.loads(said.stdout)["artifacts"]
    assert (artifact["name"], artifact["type"], artifact["num_versions"]) == (f"thoughts-{name}", "thoughts", 3)
    assert artifact["aliases"] == ["latest", "step-000000", "step-000002", "step-000004"]


def test_what_is_resumed_with_other_settings_is_another_run(run: Any, tmp_path: Path) -> None:
    for allow_changes, n_runs in ((False, 1), (True, 2)):
        folder = shutil.copytree(run.folder, tmp_path / str(allow_changes))
        shutil.rmtree(folder / "checkpoint-4")
        changes = {"learning_rate": 0.02} if allow_changes else {}
        trainer = trainer_of(folder, ["tensorboard"], allow_changes=allow_changes, **changes)
        trainer.train(resume_from_checkpoint=True)
        assert len(list((folder / "runs").iterdir())) == n_runs


def test_mlflow_takes_a_resumed_run_that_is_called_otherwise(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run there cannot get other parameters, such as `resume`, and MLflow would complain."""
    folder = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-4")
    trainer = trainer_of(folder, ["mlflow"], resume=True)
    with trainer.tracked.ending():
        trainer.train(resume_from_checkpoint=True)
    assert trainer.tracked.runs["MLflow"] == run.ids["MLflow"]
    assert "Failed to log" not in caplog.text


def test_evaluations_after_training_go_to_the_same_run(stores: Path, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    before = {each.info.run_id for each in client.search_runs(["0"])}
    trainer = trainer_of(tmp_path, ["mlflow"], max_steps=1, eval_on_start=False, eval_strategy="no")
    with trainer.tracked.ending():
        trainer.train()
        trainer.evaluate()
    (new,) = {each.info.run_id for each in client.search_runs(["0"])} - before
    assert client.get_run(new).info.status == "FINISHED"
    assert "eval_talk_nll_0" in client.get_run(new).data.metrics


def test_each_run_of_a_process_is_one_in_wandb(stores: Path, tmp_path: Path) -> None:
    ids = []
    for name in ("first", "second"):
        trainer = trainer_of(tmp_path / name, ["wandb"], max_steps=1, eval_strategy="no", eval_report_rows=0)
        with trainer.tracked.ending():
            trainer.train()
            ids += trainer.tracked.current().values()
    assert len(set(ids)) == 2


def test_a_run_that_the_user_has_opened_stays_open(stores: Path, tmp_path: Path) -> None:
    mine = mlflow.start_run()
    trainer = trainer_of(tmp_path, ["mlflow"], max_steps=1, eval_strategy="no", eval_report_rows=0)
    with trainer.tracked.ending():
        trainer.train()
    assert mlflow.active_run().info.run_id == mine.info.run_id
    mlflow.end_run()
    assert "loss" in mlflow.get_run(mine.info.run_id).data.metrics


class Interrupted(TrainerCallback):
    """Ends a run as a signal does."""

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        raise InterruptedRunError


def test_an_interrupted_run_says_so(stores: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, ["mlflow"], max_steps=1, eval_strategy="no", eval_report_rows=0)
    trainer.add_callback(Interrupted)
    with pytest.raises(InterruptedRunError), trainer.tracked.ending():
        trainer.train()
    assert mlflow.get_run(trainer.tracked.runs["MLflow"]).info.status == "KILLED"


def test_a_run_that_mlflow_has_lost_begins_anew(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-4")
    mlflow.delete_run(run.ids["MLflow"])
    trainer = trainer_of(folder, ["mlflow"])
    with trainer.tracked.ending():
        trainer.train(resume_from_checkpoint=True)
    mlflow.MlflowClient().restore_run(run.ids["MLflow"])
    assert f"has no run {run.ids['MLflow']}: a new one begins there" in caplog.text
    assert trainer.tracked.runs["MLflow"] != run.ids["MLflow"]


def test_a_tracker_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("the server is gone")

    monkeypatch.setattr(trackers.TensorBoard, "add_report", fail)
    trainer = trainer_of(tmp_path, ["tensorboard"])
    trainer.train()
    assert trainer.state.global_step == 4
    assert "the report of step 2 cannot be added to TensorBoard: the server is gone" in caplog.text


def test_only_the_first_process_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, ["tensorboard"])
    assert list(trainer.tracked.trackers()) == ["TensorBoard"]
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    assert trainer.tracked.trackers() == {}


@pytest.mark.parametrize("name", ALL)
def test_a_tracker_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(SettingsError, match=f"report_to is {name}, which is not installed: pip install {name}, or "):
        trainer_of(tmp_path, [name])


@pytest.mark.parametrize(
    ("name", "kind"), [("wandb", WandbCallback), ("mlflow", MLflowCallback), ("trackio", TrackioCallback)]
)
def test_a_tracker_that_cannot_begin_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type
) -> None:
    """Each raises errors of its own: wandb's UsageError without a key, mlflow's where there is no server."""

    def setup(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `login`.")

    monkeypatch.setattr(kind, "setup", setup)
    trainer = trainer_of(tmp_path, [name])
    with pytest.raises(SettingsError, match=f"^report_to has {name}, which cannot begin: No API key configured"):
        trainer.train()
