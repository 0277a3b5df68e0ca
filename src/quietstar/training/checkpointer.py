"""The checkpointer: a checkpoint is whole or absent, on every process, whatever happens while it is written."""

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
    """Writes the checkpoints of a run: aside, then renamed, and marked complete last; see `checkpoints`.

    Args:
        run: folder of the run.
        processes: of the run.
        publishes: whether this process renames and deletes: the first one, or the first on each machine.
        n_kept: checkpoints to keep, the latest; None or less than 1 keeps all.
    """

    def __init__(self, run: Path, processes: Processes, *, publishes: bool, n_kept: int | None) -> None:
        self.run, self.processes, self.publishes, self.n_kept = run, processes, publishes, n_kept

    def write(
        self, step: int, write_files: Callable[[Path], None], about: dict[str, Any], best: str | None
    ) -> Path | None:
        """Write the checkpoint of a step; every process must call it.

        Args:
            step: its number.
            write_files: writes this process's files into a folder.
            about: kept in the marker.
            best: the best checkpoint so far, which is never deleted.

        Returns:
            The checkpoint; None if it is there already.

        Raises:
            CheckpointError: it cannot be written. Nothing of it is left, and the one before is whole.
        """
        checkpoint, aside = self.run / checkpoints.name_of(step), self.run / checkpoints.ASIDE
        if self.processes.any(checkpoints.is_whole(checkpoint)):
            return None
        with self._agreed(checkpoint, aside):
            if self.publishes and aside.exists():
                shutil.rmtree(aside)
        written = aside / checkpoint.name
        with self._agreed(checkpoint, aside):
            written.mkdir(parents=True, exist_ok=True)
            write_files(written)
        with self._agreed(checkpoint, aside):
            if self.publishes:
                checkpoints.flush_all(written)
                checkpoints.publish(written, checkpoint, {"step": step, **about})
                aside.rmdir()
                checkpoints.keep_latest(self.run, self.n_kept, also=best)
        return checkpoint

    def path_of_best(self, best_step: int, step: int) -> str | None:
        """Return where the checkpoint of the best step lies, or will if it is of this step; None if it is gone."""
        best = self.run / checkpoints.name_of(best_step)
        return str(best) if best_step == step or best.exists() else None

    def delete_old(self, resumed: Path, best: str | None) -> None:
        """Delete what was to be deleted when the run was stopped, if it resumes from its latest checkpoint."""
        if self.publishes and checkpoints.latest(self.run) == resumed:
            checkpoints.keep_latest(self.run, self.n_kept, also=best)

    @contextlib.contextmanager
    def _agreed(self, checkpoint: Path, aside: Path) -> Iterator[None]:
        """If writing fails on one process, make it fail on all, and delete what was written."""
        failure: BaseException | None = None
        try:
            yield
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            failure = error
        if not self.processes.any(failure is not None):
            return
        if self.publishes:
            shutil.rmtree(aside, ignore_errors=True)
        last = checkpoints.latest(self.run)
        why = first_line(failure) if failure is not None else "another process could not write its part"
        left = f"{shutil.disk_usage(self.run).free / 1e9:.3g} GB are free there; " if self.run.is_dir() else ""
        is_full = not isinstance(failure, OSError) or failure.errno in (None, errno.ENOSPC, errno.EDQUOT)
        todo = "make room" if is_full else "fix that"
        raise CheckpointError(
            f"{checkpoint} cannot be written ({why}); {left}"
            + (f"{last.name} is whole: {todo}, and continue with --resume" if last else f"{todo}, and start again")
        ) from failure
