"""Resuming: whether a checkpoint is readable and of the same run, and the states of the run's parts in it."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerState
from transformers.trainer_callback import ExportableState

from quietstar.base.untrusted import is_number, is_whole
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, reason
from quietstar.runs.processes import Processes
from quietstar.training import checkpoints
from quietstar.training.memory import is_out_of_memory
from quietstar.training.same_run import refuse_changes

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def resuming_from(checkpoint: str | Path | None) -> Iterator[None]:
    """Raise CheckpointError, in one line, for whatever libraries raise while they read a checkpoint."""
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"cannot resume from {checkpoint} ({reason(error)}): a file in it is damaged, or of another model; "
            "move it away, and --resume continues from the checkpoint before"
        ) from error


def in_one_line(load: Callable[[Any, str | None], None]) -> Callable[[Any, str | None], None]:
    """Return a method that loads a part of a checkpoint, as the given one does, and raises as `resuming_from` does."""

    def load_or_raise(self: Any, checkpoint: str | None) -> None:
        with resuming_from(checkpoint):
            load(self, checkpoint)

    return load_or_raise


def check_resumable(checkpoint: Path, run: Path, info: dict[str, Any], *, allow_changes: bool) -> None:
    """Raise an error if a run cannot resume from a checkpoint.

    Args:
        checkpoint: a complete one.
        run: folder of the run.
        info: what the marker of the run's next checkpoint would say: its settings, see `what_matters`, and how the
            model is sharded.
        allow_changes: take other settings than the checkpoint's.

    Raises:
        SettingsError: the settings are of another run; or later checkpoints lie beside this one.
        CheckpointError: it is damaged, it has no optimizer, or it was sharded in another way.
    """
    marker, sharded = checkpoints.read_marker(checkpoint), info["sharded"]
    if not allow_changes:
        refuse_changes(marker.get("settings", {}), info["settings"], str(checkpoint))
    if marker.get("resumable") is False:
        raise CheckpointError(
            f"{checkpoint} has no optimizer (save_only_model); train from it as --model, in another output_dir"
        )
    if marker.get("sharded") != sharded:
        raise CheckpointError(
            f"{checkpoint} was written under {marker.get('sharded') or 'no sharding'}, and this run is under "
            f"{sharded or 'no sharding'}; launch it as before, or make a model of it with quietstar convert"
        )
    step = checkpoints.step_of(checkpoint)
    later = [path.name for path in checkpoints.complete_checkpoints(run) if checkpoints.step_of(path) > step]
    if checkpoint.resolve().parent == run.resolve() and later:
        raise SettingsError(
            f"cannot resume from {checkpoint.name} with {', '.join(later)} beside it, which the run would overwrite; "
            "move the later ones away, or give another output_dir"
        )
    _check_readable(checkpoint)


def _check_readable(checkpoint: Path) -> None:
    """Raise CheckpointError if the trainer's state is damaged or of another step; warn of another transformers."""
    with resuming_from(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        step = checkpoints.read_marker(checkpoint).get("step")
        if not is_whole(state.global_step) or state.global_step != step:
            raise ValueError(f"trainer_state.json is of step {state.global_step!r}, and complete.json of {step!r}")
        if not (is_number(state.epoch) and isinstance(state.log_history, list)):
            raise TypeError("trainer_state.json has no epoch, or no lines of figures")
        if not isinstance(state.stateful_callbacks, dict):
            raise TypeError("trainer_state.json has no states of callbacks")
        version = json.loads((checkpoint / "config.json").read_bytes()).get("transformers_version")
    if version not in (None, transformers.__version__):
        logger.warning(
            "%s was written with transformers %s, and this is %s: figures may differ from those of one run",
            checkpoint,
            version,
            transformers.__version__,
        )


def save_trainer_state(state: TrainerState, callbacks: list[Any], checkpoint: Path) -> None:
    """Write trainer_state.json, with the states of callbacks that have one, as transformers reads them."""
    states: dict[str, list[dict[str, Any]]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            states.setdefault(type(callback).__name__, []).append(callback.state())
    state.stateful_callbacks = {name: found if len(found) > 1 else found[0] for name, found in states.items()}
    state.save_to_json(str(checkpoint / "trainer_state.json"))


def save_states(states: dict[str, dict[str, Any]], checkpoint: Path, processes: Processes) -> None:
    """Write the states of this process's parts."""
    torch.save({"parts": states}, _file(checkpoint, processes.rank))


def load_states(checkpoint: Path, processes: Processes) -> dict[str, dict[str, Any]]:
    """Return the states of this process's parts; nothing if another number of processes has written them.

    A part that this process has no state of has the first one's.

    Raises:
        CheckpointError: they cannot be read.
    """
    files = [_file(checkpoint, rank) for rank in sorted({0, processes.rank})]
    settings = checkpoints.read_marker(checkpoint).get("settings", {})
    if settings.get("world_size") != processes.n or not files[-1].is_file():
        return {}
    states: dict[str, dict[str, Any]] = {}
    with resuming_from(checkpoint):
        for file in files:
            states |= torch.load(file, weights_only=True, map_location="cpu")["parts"]
    return states


def _file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"progress-{rank}.pt"
