"""A run that is killed or stopped by a signal anywhere resumes as if nothing had happened; a full disk is survived."""

import errno
import json
import os
import signal
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import soak
import torch

from quietstar.errors import CheckpointError, InterruptedRunError, SettingsError
from quietstar.training import DataArguments, QuietStarTrainer, QuietStarTrainingArguments, checkpoints, signals
from quietstar.training.end import save
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training
from tests.long import mostly_long
from tests.processes import Command

SETTINGS: dict[str, Any] = dict(max_steps=20, save_steps=8, eval_steps=9)
BATCHES = {False: (16, 17, 35), True: (18,)}
"""Texts in memory, and a stream. Two batches make a step: 17 and 18 are the ninth."""
FILES = {False: (5, 60, 80, 100, 120, 140), True: (40, 80, 110)}
KILLS = [
    (soak.Kill(kind, moment), streaming)
    for kind, moments in (("batch", BATCHES), ("files", FILES))
    for streaming, of in moments.items()
    for moment in of
]
OFTEN = [(soak.Kill("batch", 17), False), (soak.Kill("files", 80), False)]
OFTEN += [(soak.Kill("batch", 18), True), (soak.Kill("files", 80), True)]
"""each kind of kill, with texts in memory and with a stream"""


@pytest.fixture
def always_in_two_parts() -> None:
    """Runs in this process attend as those in processes of their own do."""


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory) -> dict[bool, dict[str, Any]]:
    """Folders of uninterrupted runs, on texts in memory and on a stream."""
    found = {}
    for streaming in (False, True):
        folder = tmp_path_factory.mktemp("straight") / "run"
        assert soak.lives(inputs, folder, None, streaming=streaming, **SETTINGS)
        found[streaming] = soak.remains(folder)
    return found


def train(
    inputs: Path, folder: Path, *, streaming: bool = False, dataset: str | None = None, **settings: Any
) -> dict[str, Any]:
    """The same run, in this process."""
    chosen = {
        "output_dir": str(folder),
        "resume": True,
        "n_ahead": 4,
        "n_ahead_talk": 2,
        "save_total_limit": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "policy_weight": 1.0,
        "logging_steps": 3,
        "thoughts_shown": 0,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    data = DataArguments(
        dataset=dataset or str(inputs / "texts"), eval_size=4, max_length=12, streaming=streaming, shuffle_block=8
    )
    return run_training(
        ModelArguments(model=str(inputs / "base")),
        data,
        QuietStarTrainingArguments(**(chosen | SETTINGS | settings)),
    )


def test_the_comparison_notices_another_seed(inputs, straight, tmp_path):
    assert {"checkpoint-20/optimizer.pt", "checkpoint-16/rng_state.pth", "log.jsonl"} < straight[False].keys()
    train(inputs, tmp_path / "run", max_steps=20)
    assert soak.differences(soak.remains(tmp_path / "run"), straight[False]) == []
    train(inputs, tmp_path / "other", seed=43)
    found = soak.differences(soak.remains(tmp_path / "other"), straight[False])
    assert sum(name.startswith("/model.safetensors/") for name in found) > 10


@pytest.mark.parametrize(
    ("kill", "streaming"),
    mostly_long(KILLS, OFTEN),
    ids=[f"{kill.kind} {kill.moment}{' stream' * of}" for kill, of in KILLS],
)
def test_a_run_that_is_killed_anywhere_resumes_bit_by_bit(inputs, straight, tmp_path, kill, streaming):
    folder = tmp_path / "run"
    assert not soak.lives(inputs, folder, kill, streaming=streaming, **SETTINGS)
    assert soak.lives(inputs, folder, None, streaming=streaming, **SETTINGS)
    assert soak.differences(soak.remains(folder), straight[streaming]) == []


def at_batch(n: int, action: Any) -> pytest.MonkeyPatch:
    """Do something while the n-th batch is learned from."""
    patch, compute, seen = pytest.MonkeyPatch(), QuietStarTrainer.compute_loss, []

    def compute_and_act(self: QuietStarTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend([1] * model.training)
        if model.training and len(seen) == n:
            action()
        return compute(self, model, *args, **kwargs)

    patch.setattr(QuietStarTrainer, "compute_loss", compute_and_act)
    return patch


@pytest.mark.parametrize(
    ("streaming", "number"),
    mostly_long(
        product([False, True], signals.SIGNALS),
        [(False, signal.SIGTERM), (True, signal.SIGUSR1), (False, signal.SIGINT)],
    ),
)
def test_a_signal_saves_after_the_step_and_the_run_resumes_bit_by_bit(inputs, straight, tmp_path, number, streaming):
    """In the ninth step, after which an evaluation is due: it is made up for."""
    folder = tmp_path / "run"
    before = signal.getsignal(number)
    patch = at_batch(17, lambda: os.kill(os.getpid(), number))
    with patch.context(), pytest.raises(InterruptedRunError, match=f"stopped by {number.name} after step 9; checkp"):
        train(inputs, folder, streaming=streaming)
    patch.undo()
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints.complete_checkpoints(folder)] == ["checkpoint-9", "checkpoint-8"]
    assert not (folder / "model.safetensors").exists()
    train(inputs, folder, streaming=streaming)
    assert soak.differences(soak.remains(folder), straight[streaming]) == []


def command(inputs: Path, folder: Path, *words: str) -> list[str]:
    settings = {
        "model": inputs / "base",
        "dataset": inputs / "texts",
        "output_dir": folder,
        "eval_size": 4,
        "max_length": 12,
        "n_ahead": 4,
        "n_ahead_talk": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "save_steps": 1000,
        "logging_steps": 1,
        "thoughts_shown": 0,
        "eval_strategy": "no",
        "eval_on_start": False,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return ["-m", "quietstar", "train", *flags, *words]


@pytest.mark.slow
def test_a_stopped_command_has_its_own_exit_code(inputs, tmp_path):
    folder = tmp_path / "run"
    with Command(*command(inputs, folder, "--max_steps=100000")) as process:
        while "'loss'" not in process.stdout:  # it learns after that
            assert process.is_running, process.stderr
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
        assert "stopped by SIGTERM after step" in process.stderr.splitlines()[-1]
    assert len(checkpoints.complete_checkpoints(folder)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_launchers_train_on_two_processes(inputs, tmp_path, launcher):
    folder, ways = tmp_path / "run", {"torch.distributed.run": ["--nproc_per_node=2"]}
    ways["accelerate.commands.launch"] = [
        "--config_file",
        str(Path(__file__).parents[2] / "recipes" / "accelerate" / "ddp.yaml"),
        "--num_processes=2",
    ]
    launch = ["-m", launcher, *ways[launcher], f"--main_process_port={soak.free_port()}"]
    if launcher == "torch.distributed.run":
        launch[-1] = f"--master_port={soak.free_port()}"
    words = [*launch, *command(inputs, folder, "--max_steps=2", "--bf16=false")]
    with Command(*words, OMP_NUM_THREADS="1") as process:
        assert process.wait() == 0, process.stderr[-3000:]
        assert process.stderr.count(f"saved to {folder}") == 1
    assert json.loads((folder / "run.json").read_text())["training"]["max_steps"] == 2
    marker = checkpoints.read_marker(folder / "checkpoint-2")
    assert marker["settings"]["world_size"] == 2


# ---------------------------------------------------------------------- a full disk


def full_from(n: int, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let the n-th call, and every later one, meet a full disk."""
    write, calls = getattr(owner, name), []

    def write_or_fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) >= n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")
        return write(*args, **kwargs)

    monkeypatch.setattr(owner, name, write_or_fail)


@pytest.mark.parametrize(
    ("owner", "name", "n"),
    [
        (torch, "save", 6),
        pytest.param(torch, "save", 8, marks=pytest.mark.long),
        (checkpoints, "publish", 2),
        (checkpoints, "write_whole", 2),
    ],
)
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_usable(
    inputs, straight, tmp_path, monkeypatch, owner, name, n
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_from(n, patch, owner, name)
        expected = r"checkpoint-16 cannot be written \(.*No space left .*; checkpoint-8 is complete: make room"
        with pytest.raises(CheckpointError, match=expected):
            train(inputs, folder, save_total_limit=1)
    assert [path.name for path in checkpoints.complete_checkpoints(folder)] == ["checkpoint-8"]
    assert not (folder / checkpoints.TEMPORARY).exists()
    train(inputs, folder)
    assert soak.differences(soak.remains(folder), straight[False]) == []


def test_a_run_with_thoughts_of_many_lengths_resumes_bit_by_bit(inputs, tmp_path):
    """Lengths follow from the step, so that they go on where they were."""
    how = dict(n_ahead=6, n_ahead_min=2)
    patch = at_batch(17, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with patch.context(), pytest.raises(InterruptedRunError, match="after step 9"):
        train(inputs, tmp_path / "stopped", **how)
    patch.undo()
    for folder in ("stopped", "straight", "one length"):
        train(inputs, tmp_path / folder, **how | ({"n_ahead_min": None} if folder == "one length" else {}))
    stopped, straight, other = (soak.remains(tmp_path / name) for name in ("stopped", "straight", "one length"))
    assert soak.differences(stopped, straight) == []
    assert soak.differences(other, straight)


# ---------------------------------------------------------------------- other settings


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (dict(seed=7), "seed is 7 and was 42"),
        (dict(per_device_train_batch_size=1), "per_device_train_batch_size is 1 and was 2"),
        (dict(n_ahead=5), "n_ahead is 5 and was 4"),
        (dict(n_ahead_min=2), "n_ahead_min is 2 and was None"),
        (dict(streaming=True), "streaming is True and was False"),
    ],
)
def test_changed_settings_that_matter_are_refused(inputs, tmp_path, changed, told):
    folder = tmp_path / "run"
    train(inputs, folder, max_steps=2, save_steps=2)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SettingsError, match=rf"other settings: .*{told}.*--allow_changes"):
        train(inputs, folder, max_steps=4, **changed)
    assert {path: path.read_bytes() for path in before} == before
    if "streaming" not in changed:  # places are of the stream
        train(inputs, folder, max_steps=4, allow_changes=True, **changed)


def test_settings_that_do_not_matter_may_change(inputs, tmp_path):
    folder = tmp_path / "run"
    train(inputs, folder, max_steps=2, save_steps=2)
    train(inputs, folder, max_steps=4, save_steps=1, logging_steps=1, eval_steps=1, save_total_limit=3)
    assert len(checkpoints.complete_checkpoints(folder)) == 3


def test_resume_begins_a_run_without_checkpoints(inputs, tmp_path, caplog):
    train(inputs, tmp_path / "run", max_steps=1, save_strategy="no")
    (tmp_path / "run" / "model.safetensors").unlink()
    caplog.set_level("INFO", "quietstar")
    train(inputs, tmp_path / "run", max_steps=1)
    assert "has no complete checkpoint: the run begins" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_allowed_changes_reach_the_optimizer(inputs, tmp_path):
    folder, of_lines = tmp_path / "run", dict(logging_steps=1, save_steps=2, warmup_steps=0)
    train(inputs, folder, max_steps=2, **of_lines)
    train(inputs, folder, max_steps=4, learning_rate=1e-3, weight_decay=0.5, allow_changes=True, **of_lines)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in log if "learning_rate" in line] == [1e-2, 1e-2, 1e-3, 1e-3]
    groups = torch.load(folder / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}


def test_new_intervals_of_saving_and_logging_are_followed(inputs, tmp_path):
    folder = tmp_path / "run"
    train(inputs, folder, max_steps=4, save_steps=4, logging_steps=4, eval_steps=4)
    train(inputs, folder, max_steps=8, save_steps=1, logging_steps=1, eval_steps=2, save_total_limit=9)
    assert len(checkpoints.complete_checkpoints(folder)) == 5
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [4, 5, 6, 7, 8]
    assert [line["step"] for line in log if "eval_loss" in line] == [0, 4, 6, 8]


def test_an_earlier_checkpoint_is_not_resumed_beside_later_ones(inputs, tmp_path):
    folder = tmp_path / "run"
    train(inputs, folder, max_steps=4, save_steps=2)
    named = dict(resume=False, resume_from_checkpoint=str(folder / "checkpoint-2"))
    with pytest.raises(SettingsError, match="cannot resume from checkpoint-2 with checkpoint-4 beside it, which"):
        train(inputs, folder, max_steps=8, **named)
    assert len(checkpoints.complete_checkpoints(folder)) == 2


def test_a_checkpoint_without_an_optimizer_is_not_resumed(inputs, tmp_path):
    train(inputs, tmp_path / "run", max_steps=2, save_steps=2, save_only_model=True)
    with pytest.raises(CheckpointError, match="checkpoint-2 has no optimizer"):
        train(inputs, tmp_path / "run", max_steps=4)


def test_resume_and_a_named_checkpoint_exclude_each_other(inputs, tmp_path):
    with pytest.raises(SettingsError, match="give one of the two"):
        train(inputs, tmp_path / "run", resume_from_checkpoint="checkpoint-3")


EPOCHS: dict[str, Any] = dict(max_steps=33, save_steps=15, eval_strategy="epoch", eval_steps=None, save_total_limit=9)
"""fifteen steps an epoch: a checkpoint lies at the end of each"""
BEST: dict[str, Any] = dict(
    load_best_model_at_end=True, metric_for_best_model="nll", greater_is_better=True, save_steps=3, eval_steps=3
)
"""the worst one is soon behind: it is kept beside the latest"""


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        pytest.param(EPOCHS, 15, id="end"),
        pytest.param(EPOCHS, 17, id="after", marks=pytest.mark.long),
        pytest.param(BEST, 3, id="best", marks=pytest.mark.long),
        pytest.param(BEST, 10, id="later"),
    ],
)
def test_evaluations_of_epochs_and_the_best_model_survive_a_signal(inputs, tmp_path, settings, step):
    settings = SETTINGS | dict(save_total_limit=1) | settings
    train(inputs, tmp_path / "straight", **settings)
    patch = at_batch(2 * step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with patch.context(), pytest.raises(InterruptedRunError, match=f"checkpoint-{step} is complete"):
        train(inputs, tmp_path / "run", **settings)
    patch.undo()
    assert checkpoints.latest(tmp_path / "run") == tmp_path / "run" / f"checkpoint-{step}"  # beside the best one
    train(inputs, tmp_path / "run", **settings)
    found = {
        name: value
        for name, value in soak.remains(tmp_path / "run").items()
        if not name.startswith(f"checkpoint-{step}/")  # one more than the other has
    }
    expected = {name: value for name, value in soak.remains(tmp_path / "straight").items() if name in found}
    assert {"model.safetensors", "log.jsonl"} < expected.keys()
    differing = soak.differences(found, expected)
    assert [name for name in differing if "best_model_checkpoint" not in name] == []  # which names the folder


def test_the_latest_checkpoint_is_kept_beside_the_best(inputs, tmp_path):
    """transformers would delete it at the end of a run, before the model is saved."""
    folder = tmp_path / "run"
    train(inputs, folder, **SETTINGS | BEST | dict(max_steps=7, save_total_limit=1))
    assert [path.name for path in checkpoints.complete_checkpoints(folder)] == ["checkpoint-7", "checkpoint-3"]


def test_a_signal_after_the_last_step_does_not_stop_the_final_save(inputs, tmp_path, monkeypatch):
    def told_to_stop(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args, **kwargs)

    monkeypatch.setattr("quietstar.training.run.save", told_to_stop)
    train(inputs, tmp_path / "run", max_steps=2)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_two_runs_cannot_share_a_folder(inputs, tmp_path):
    """Nor is the one that comes second told to empty it."""
    held = tmp_path / "held.py"
    held.write_text(
        "import sys, time; from quietstar.runs.folders import alone_in\n"
        "with alone_in(sys.argv[1]): print('here'); time.sleep(300)"
    )
    with Command(held, tmp_path / "run") as other:
        while "here" not in other.stdout:
            assert other.is_running, other.stderr
            time.sleep(0.05)
        with pytest.raises(SettingsError, match="another run is using output_dir"):
            train(inputs, tmp_path / "run", max_steps=1)
    train(inputs, tmp_path / "run", max_steps=1)  # what a run that was killed leaves does not hold others up
    assert sorted(path.name for path in (tmp_path / "run").glob("*.being-written")) == []


def test_overwrite_and_resume_exclude_each_other(inputs, tmp_path):
    with pytest.raises(
        SettingsError, match="overwrite empties output_dir, and resume needs what is in it; leave one out"
    ):
        train(inputs, tmp_path / "run", overwrite=True)


def test_a_disk_that_is_full_at_the_end_loses_no_checkpoint(inputs, tmp_path, monkeypatch):
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("quietstar.training.run.save", full)
        with pytest.raises(CheckpointError, match=r"the trained model cannot be written to .*No space left"):
            train(inputs, tmp_path / "run", max_steps=2)
    assert not (tmp_path / "run" / "results.json").exists()
    train(inputs, tmp_path / "run", max_steps=2)
    assert (tmp_path / "run" / "model.safetensors").exists()
