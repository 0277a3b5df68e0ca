"""The checkpointer: all processes write a checkpoint together, and if one of them fails, nothing of it is left."""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from quietstar.errors import CheckpointError, first_line
from quietstar.runs.processes import Processes
from quietstar.training import checkpoints


class Checkpointer:
    """Writes the checkpoints of a run, as `checkpoints` describes.

    Args:
        run: folder of the run.
        processes: of the run.
        publishes: whether this process renames and deletes: the first one, or the first on each machine.
        n_kept: how many of the latest checkpoints to keep; None, or less than 1, keeps all.
    """

    def __init__(self, run: Path, processes: Processes, *, publishes: bool, n_kept: int | None) -> None:
        self.run, self.processes, self.publishes, self.n_kept = run, processes, publishes, n_kept

    def write(
        self, step: int, write_files: Callable[[Path], None], info: dict[str, Any], best: str | None
    ) -> Path | None:
        """Write the checkpoint of a step; every process must call it.

        Args:
            step: its number.
            write_files: writes this process's files into a folder.
            info: what the marker says besides the step.
            best: the best checkpoint so far, which is never deleted.

        Returns:
            The checkpoint; None if it exists already.

        Raises:
            CheckpointError: it cannot be written. Nothing of it is left, and the one before is complete.
        """
        checkpoint, temporary = self.run / checkpoints.name_of(step), self.run / checkpoints.TEMPORARY
        if self.processes.any(checkpoints.is_complete(checkpoint)):
            return None
        with self._all_or_none(checkpoint, temporary):
            if self.publishes and temporary.exists():
                shutil.rmtree(temporary)
        written = temporary / checkpoint.name
        with self._all_or_none(checkpoint, temporary):
            written.mkdir(parents=True, exist_ok=True)
            write_files(written)
        with self._all_or_none(checkpoint, temporary):
            if self.publishes:
                checkpoints.flush_all(written)
                checkpoints.publish(written, checkpoint, {"step": step, **info})
                temporary.rmdir()
                checkpoints.keep_latest(self.run, self.n_kept, also=best)
        return checkpoint

    def path_of_best(self, best_step: int, step: int) -> str | None:
        """Return the path of the best step's checkpoint, which may be about to be written; None if it is gone."""
        best = self.run / checkpoints.name_of(best_step)
        return str(best) if best_step == step or best.exists() else None

    def delete_old(self, resumed: Path, best: str | None) -> None:
        """Delete old checkpoints that the stopped run did not get to, if it resumes from its latest one."""
        if self.publishes and checkpoints.latest(self.run) == resumed:
            checkpoints.keep_latest(self.run, self.n_kept, also=best)

    @contextlib.contextmanager
    def _all_or_none(self, checkpoint: Path, temporary: Path) -> Iterator[None]:
        """If writing fails on one process, make it fail on all, and delete what was written."""
        failure: BaseException | None = None
        try:
            yield
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            failure = error
        if not self.processes.any(failure is not None):
            return
        if self.publishes:
            shutil.rmtree(temporary, ignore_errors=True)
        last = checkpoints.latest(self.run)
        why = first_line(failure) if failure is not None else "another process could not write its part"
        left = f"{shutil.disk_usage(self.run).free / 1e9:.3g} GB are free there; " if self.run.is_dir() else ""
        is_full = not isinstance(failure, OSError) or failure.errno in (None, errno.ENOSPC, errno.EDQUOT)
        todo = "make room" if is_full else "fix that"
        raise CheckpointError(
            f"{checkpoint} cannot be written ({why}); {left}"
            + (f"{last.name} is complete: {todo}, and continue with --resume" if last else f"{todo}, and start again")
        ) from failure
