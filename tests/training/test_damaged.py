"""A checkpoint whose files are all there but hold something else: one line that names it, and no step is made."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quietstar.errors import CheckpointError
from quietstar.training import checkpoints
from tests.elsewhere import Surprise, refused
from tests.training.test_killed import train


@pytest.fixture(scope="module")
def stopped(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped before its last step."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(inputs, folder, max_steps=2, save_steps=2)
    return folder


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def nothing(file: Path) -> None:
    """Valid content of something else for a file."""
    if file.suffix == ".json":
        file.write_text("[]")
    elif file.suffix == ".safetensors":
        save_file({"other": torch.zeros(1)}, file, metadata={"format": "pt"})
    else:
        torch.save({}, file)


def code(file: Path) -> None:
    file.write_bytes(pickle.dumps(Surprise(file.parent / "witness")))


def half(file: Path) -> None:
    """Some of the weights, others of another shape."""
    state = load_file(file)
    names = sorted(state)
    save_file({name: state[name] for name in names[::2]}, file, metadata={"format": "pt"})


def shapes(file: Path) -> None:
    save_file({name: torch.zeros(2, 2) for name in load_file(file)}, file, metadata={"format": "pt"})


def other_step(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"global_step": 10**12}))


BINARY = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "progress-0.pt")
DAMAGES = [
    *((name, damage) for name in (*BINARY, "model.safetensors") for damage in (zeros, nothing)),
    *((name, code) for name in BINARY),
    *((name, zeros) for name in ("config.json", "trainer_state.json")),
    *(("trainer_state.json", damage) for damage in (nothing, other_step)),
    *(("model.safetensors", damage) for damage in (half, shapes)),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda of: of if isinstance(of, str) else of.__name__)
def test_a_damaged_file_is_reported_in_one_line(
    inputs: Path, stopped: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    checkpoint = folder / "checkpoint-2"
    damage(checkpoint / name)
    marker = json.loads((checkpoint / checkpoints.MARKER).read_text())
    marker["files"][name] = (checkpoint / name).stat().st_size
    (checkpoint / checkpoints.MARKER).write_text(json.dumps(marker))
    words = "(cannot resume from .*checkpoint-2 .* damaged|checkpoint-2 lacks .* of the model's weights).*move it away"
    refused(lambda: train(inputs, folder, max_steps=4), words, CheckpointError)
    assert not (checkpoint / "witness").exists()
    assert checkpoints.complete_checkpoints(folder) == [checkpoint]
    shutil.rmtree(checkpoint)
    train(inputs, folder, max_steps=1, save_steps=1)  # the last one is gone: it begins anew


def test_a_marker_with_impossible_settings_is_not_whole(inputs: Path, stopped: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(stopped, tmp_path / "run")) / "checkpoint-2"
    marker = json.loads((checkpoint / checkpoints.MARKER).read_text())
    for settings in ([], "x", 3):
        (checkpoint / checkpoints.MARKER).write_text(json.dumps(marker | {"settings": settings}))
        refused(lambda: checkpoints.read_marker(checkpoint), "has no settings of a run", CheckpointError)
