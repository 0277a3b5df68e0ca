"""Checkpoints on disk, of which only complete ones are resumed from.

A checkpoint is written into a temporary folder, flushed to the disk, renamed to checkpoint-N, and marked complete last.
If that is interrupted anywhere, it has no marker, or one that does not fit its files, and is skipped.
"""

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from quietstar.errors import CheckpointError, SettingsError
from quietstar.runs.folders import flush, write_whole

logger = logging.getLogger(__name__)

PREFIX = "checkpoint"
TEMPORARY = "checkpoint-being-written"
"""folder of a run in which a checkpoint is written"""
MARKER = "complete.json"
"""written last: the sizes of all files, and what the checkpoint is of"""
FORMAT = 1


def name_of(step: int) -> str:
    """Return checkpoint-N, as transformers calls it."""
    return f"{PREFIX}-{step}"


def step_of(checkpoint: Path) -> int:
    """Return N of checkpoint-N; -1 for other names."""
    prefix, _, number = checkpoint.name.rpartition("-")
    return int(number) if prefix == PREFIX and number.isascii() and number.isdigit() else -1


def publish(written: Path, checkpoint: Path, about: dict[str, Any]) -> None:
    """Rename a temporary folder, flushed before, to the checkpoint's name, and mark it complete.

    An incomplete checkpoint of that name, left by an earlier attempt, is deleted.

    Args:
        written: the folder, in the same file system.
        checkpoint: its final name.
        about: kept in the marker; `read_marker` returns it.

    Raises:
        OSError: it cannot be written.
    """
    if is_complete(checkpoint):
        raise FileExistsError(errno.EEXIST, "there is a complete checkpoint of that name", str(checkpoint))
    if checkpoint.exists():
        remove(checkpoint)
    sizes = {str(path.relative_to(written)): path.stat().st_size for path in sorted(files_of(written))}
    os.rename(written, checkpoint)
    flush(checkpoint.parent)
    write_whole(checkpoint / MARKER, json.dumps({"format": FORMAT, **about, "files": sizes}, indent=2) + "\n")


def flush_all(folder: Path) -> None:
    """Flush all files in a folder to the disk, at any depth."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def files_of(folder: Path) -> list[Path]:
    """Return all files in a folder, at any depth."""
    return [path for path in folder.rglob("*") if path.is_file()]


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """Return the marker of a complete checkpoint: what `publish` was told about it.

    Raises:
        CheckpointError: it is not complete; the message says why.
    """
    try:
        marker = json.loads((checkpoint / MARKER).read_bytes())
    except FileNotFoundError:
        raise _torn(checkpoint, f"it has no {MARKER}, which is written last") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _torn(checkpoint, f"its {MARKER} cannot be read") from error
    files = marker.get("files") if isinstance(marker, dict) else None
    if not isinstance(files, dict) or not files or not all(type(n) is int and n < 2**63 for n in files.values()):
        raise _torn(checkpoint, f"its {MARKER} lists no files")
    if not isinstance(marker.get("settings", {}), dict):
        raise _torn(checkpoint, f"its {MARKER} has no settings of a run")
    if marker.get("format") != FORMAT:
        raise _torn(checkpoint, f"its {MARKER} has format {str(marker.get('format'))[:20]!r}, not {FORMAT}")
    for name, size in files.items():
        try:
            found = (checkpoint / name).stat().st_size if not Path(name).is_absolute() else -1
        except (OSError, ValueError):
            found = -1
        if found != size or ".." in Path(name).parts:
            has = "is missing" if found < 0 else f"has {found:,} of {size:,} bytes"
            raise _torn(checkpoint, f"{name[:80]!r} {has}")
    return marker


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint exists and is complete."""
    try:
        read_marker(checkpoint)
    except CheckpointError:
        return False
    return True


def _torn(checkpoint: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint} is not a complete checkpoint: {why}; give another folder {PREFIX}-N, or --resume for the latest "
        "complete one"
    )


def complete_checkpoints(run: Path, *, report: bool = False) -> list[Path]:
    """Return a run's complete checkpoints, latest first; others are skipped, and reported if that is asked for."""
    complete = []
    for checkpoint in sorted((path for path in run.glob(f"{PREFIX}-*") if step_of(path) >= 0), key=step_of)[::-1]:
        try:
            read_marker(checkpoint)
            complete.append(checkpoint)
        except CheckpointError as error:
            if report:
                logger.warning("%s is skipped: %s", checkpoint, str(error).partition(": ")[2].partition(";")[0])
    if report and (run / TEMPORARY).exists():
        logger.warning("%s was never finished, and is skipped", run / TEMPORARY)
    return complete


def latest(run: Path, *, report: bool = False) -> Path | None:
    """Return a run's latest complete checkpoint, None if there is none; see `complete_checkpoints`."""
    return next(iter(complete_checkpoints(run, report=report)), None)


def to_resume(run: Path, asked: str | bool | None, args: Any) -> Path | None:
    """Return the checkpoint that `find` finds, None for a new run.

    Args:
        run: its folder.
        asked: a checkpoint's folder, or True; otherwise the latest one is resumed from if args.resume says so.
        args: of the run, which may save checkpoints of its own.

    Raises:
        CheckpointError: there is none, or it is not complete.
        SettingsError: a new run would mix its checkpoints with those of an earlier one.
    """
    if asked:
        return find(run, asked)
    if args.resume:
        return latest(run)
    if args.save_strategy != "no" and (there := latest(run)):
        raise SettingsError(
            f"output_dir {run} has {there.name} of an earlier run; resume from it (resume_from_checkpoint=True), or "
            "give another output_dir"
        )
    return None


def find(run: Path, named: str | bool) -> Path:
    """Return the checkpoint that is named; for True or an empty name the run's latest one.

    Raises:
        CheckpointError: there is none, or it is not complete.
    """
    if named and named is not True:
        read_marker(Path(named))
        return Path(named)
    if found := latest(run, report=True):
        return found
    raise CheckpointError(f"output_dir {run} has no complete checkpoint; train from the beginning")


def keep_latest(run: Path, n: int | None, also: str | None = None) -> None:
    """Delete all complete checkpoints except the latest n, and incomplete ones that are older than those.

    Args:
        run: the folder of the run.
        n: None, or less than 1, keeps all.
        also: a checkpoint that is kept in any case, such as the best.
    """
    if n is None or n < 1:
        return
    complete = complete_checkpoints(run)
    for checkpoint in complete[n:]:
        if also is None or checkpoint.resolve() != Path(also).resolve():
            remove(checkpoint)
    for checkpoint in run.glob(f"{PREFIX}-*"):
        if complete and 0 <= step_of(checkpoint) < step_of(complete[0]) and not (checkpoint / MARKER).exists():
            remove(checkpoint)


def best_of(run: Path) -> Path:
    """Return the complete checkpoint of the best step of a run, as its latest one knows it.

    Raises:
        CheckpointError: there is none, or it is not complete.
    """
    state = json.loads((find(run, True) / TRAINER_STATE_NAME).read_text())
    return find(run, str(run / name_of(state["best_global_step"])))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its marker first, so that a crash leaves none that looks complete; or a link to one."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    (checkpoint / MARKER).unlink(missing_ok=True)
    flush(checkpoint)
    shutil.rmtree(checkpoint)
