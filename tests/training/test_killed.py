"""A run that is killed anywhere, or told to stop, goes on as if nothing had happened; a full disk loses nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soak
import torch

from quietstar.errors import CheckpointError, InterruptedRunError, SettingsError
from quietstar.training import DataArguments, QuietStarTrainer, QuietStarTrainingArguments, checkpoints, signals
from quietstar.training.arguments import ModelArguments
from quietstar.training.run import run_training

SETTINGS: dict[str, Any] = dict(max_steps=20, save_steps=8, eval_steps=9)
KILLS = [
    *(soak.Kill("batch", moment) for moment in (16, 17, 18, 35)),  # two batches make a step: 17 and 18 are the ninth
    *(soak.Kill("files", moment) for moment in (5, 40, 60, 80, 100, 110, 120, 140)),
]


@pytest.fixture
def always_in_two_parts() -> None:
    """Runs in this process attend as those in processes of their own do."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    soak.make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory) -> dict[bool, dict[str, Any]]:
    """What runs leave that nobody disturbs, of texts at hand and of a stream."""
    found = {}
    for streaming in (False, True):
        folder = tmp_path_factory.mktemp("straight") / "run"
        assert soak.lives(inputs, folder, None, streaming=streaming, **SETTINGS)
        found[streaming] = soak.remains(folder)
    return found


def train(inputs: Path, folder: Path, *, streaming: bool = False, **settings: Any) -> dict[str, Any]:
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
        dataset=str(inputs / "texts"), eval_size=4, max_length=12, streaming=streaming, shuffle_block=8
    )
    return run_training(
        ModelArguments(model=str(inputs / "base")),
        data,
        QuietStarTrainingArguments(**(chosen | SETTINGS | settings)),
    )


def test_what_is_compared_has_teeth(inputs, straight, tmp_path):
    assert {"checkpoint-20/optimizer.pt", "checkpoint-16/rng_state.pth", "log.jsonl"} < straight[False].keys()
    train(inputs, tmp_path / "run", max_steps=20)
    assert soak.differences(soak.remains(tmp_path / "run"), straight[False]) == []
    train(inputs, tmp_path / "other", seed=43)
    found = soak.differences(soak.remains(tmp_path / "other"), straight[False])
    assert sum(name.startswith("/model.safetensors/") for name in found) > 10


@pytest.mark.parametrize("streaming", [False, True], ids=["at hand", "stream"])
@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: f"{kill.kind} {kill.moment}")
def test_a_run_that_is_killed_anywhere_goes_on_bit_by_bit(inputs, straight, tmp_path, kill, streaming):
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


@pytest.mark.parametrize("number", signals.SIGNALS)
@pytest.mark.parametrize("streaming", [False, True], ids=["at hand", "stream"])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_bit_by_bit(inputs, straight, tmp_path, number, streaming):
    """In the ninth step, after which an evaluation is due: it is made up for."""
    folder = tmp_path / "run"
    before = signal.getsignal(number)
    patch = at_batch(17, lambda: os.kill(os.getpid(), number))
    with patch.context(), pytest.raises(InterruptedRunError, match=f"stopped by {number.name} after step 9; checkp"):
        train(inputs, folder, streaming=streaming)
    patch.undo()
    assert signal.getsignal(number) is before
    assert [path.name for path in checkpoints.whole_checkpoints(folder)] == ["checkpoint-9", "checkpoint-8"]
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
def test_the_command_ends_with_a_code_of_its_own(inputs, tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, *command(inputs, folder, "--max_steps=100000")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("'loss'" in line for line in process.stdout)  # it is learning
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "stopped by SIGTERM after step" in errors.splitlines()[-1]
    assert len(checkpoints.whole_checkpoints(folder)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_launchers_train_on_two_processes(inputs, tmp_path, launcher):
    folder, ways = tmp_path / "run", {"torch.distributed.run": ["--nproc_per_node=2"]}
    ways["accelerate.commands.launch"] = [
        "--config_file",
        str(Path(__file__).parents[2] / "recipes" / "accelerate" / "ddp.yaml"),
        "--num_processes=2",
    ]
    launch = [sys.executable, "-m", launcher, *ways[launcher], f"--main_process_port={soak.free_port()}"]
    if launcher == "torch.distributed.run":
        launch[-1] = f"--master_port={soak.free_port()}"
    words = [*launch, *command(inputs, folder, "--max_steps=2", "--bf16=false")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "run.json").read_text())["training"]["max_steps"] == 2
    marker = checkpoints.read_marker(folder / "checkpoint-2")
    assert marker["settings"]["world_size"] == 2
    assert done.stderr.count(f"saved to {folder}") == 1


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
    [(torch, "save", 6), (torch, "save", 8), (checkpoints, "publish", 2), (checkpoints, "write_whole", 2)],
)
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_usable(
    inputs, straight, tmp_path, monkeypatch, owner, name, n
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_from(n, patch, owner, name)
        expected = r"checkpoint-16 cannot be written \(.*No space left .* free there; checkpoint-8 is whole: make room"
        with pytest.raises(CheckpointError, match=expected):
            train(inputs, folder, save_total_limit=1)
    assert [path.name for path in checkpoints.whole_checkpoints(folder)] == ["checkpoint-8"]
    assert not (folder / checkpoints.ASIDE).exists()
    train(inputs, folder)
    assert soak.differences(soak.remains(folder), straight[False]) == []


# ---------------------------------------------------------------------- other settings


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (dict(seed=7), "seed is 7 and was 42"),
        (dict(per_device_train_batch_size=1), "per_device_train_batch_size is 1 and was 2"),
        (dict(n_ahead=5), "n_ahead is 5 and was 4"),
        (dict(streaming=True), "streaming is True and was False"),
    ],
)
def test_other_settings_that_matter_are_asked_about(inputs, tmp_path, changed, told):
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
    assert (folder / "checkpoint-4").is_dir()


def test_resume_begins_where_there_is_nothing_yet(inputs, tmp_path, caplog):
    train(inputs, tmp_path / "run", max_steps=1, save_strategy="no")
    (tmp_path / "run" / "model.safetensors").unlink()
    caplog.set_level("INFO", "quietstar")
    train(inputs, tmp_path / "run", max_steps=1)
    assert "holds no checkpoint that is whole: the run begins" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").exists()
