"""Output folders of runs: nothing in one is overwritten without `--overwrite`."""

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from quietstar.errors import CheckpointError, SettingsError

try:
    import fcntl
except ImportError as error:
    raise ImportError("quietstar needs a POSIX system such as Linux or macOS: module fcntl is missing") from error

MARKER = "run.json"
"""the file of a run's settings, by which its output folder is recognised"""
UNFINISHED = ".being-written"
"""suffix of files that are being written"""
RUNNING = f"run{UNFINISHED}"
"""a file that a run keeps locked while it uses a folder; a killed run leaves it behind"""


def claim(folder: str | Path, settings: dict[str, Any], *, overwrite: bool = False, resume: bool | None = None) -> Path:
    """Prepare the output folder of a run, and write the run's settings to its run.json.

    The folder is new or empty; `overwrite` deletes what an earlier run has left in it, `resume` keeps that.

    Raises:
        SettingsError: the folder cannot be created, or it holds files that neither option covers.
    """
    check_output_folder(folder, overwrite=overwrite, resume=resume)
    folder = Path(folder)
    if not is_empty(folder) and not resume:
        for item in (item for item in folder.iterdir() if item.name != RUNNING):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / MARKER, json.dumps(settings, indent=2, default=str) + "\n")
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings that `claim` wrote for a folder's run; none if they cannot be read."""
    try:
        found = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def check_output_folder(folder: str | Path, *, overwrite: bool = False, resume: bool | None = None) -> None:
    """Raise what `claim` would raise, without changing anything; call it before long work.

    `resume`: None of a command whose runs cannot be resumed.
    """
    folder = Path(folder)
    try:
        is_run = (folder / MARKER).is_file()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise _unusable(folder, error) from error
    if not there.is_dir():
        if there == folder:
            raise SettingsError(f"output_dir {folder} is a file; give a folder")
        raise SettingsError(f"output_dir {folder} would be inside {there}, which is a file; give another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(f"output_dir {folder} cannot be written: no permission to write to {there}; give another")
    if resume and not is_run:
        raise SettingsError(f"output_dir {folder} has no run to resume; leave that option out")
    if resume or is_empty(folder):
        return
    if not is_run:
        raise SettingsError(
            f"output_dir {folder} is not empty, and not created by quietstar; give a new or empty folder"
        )
    if not overwrite:
        goes_on = "" if resume is None else "--resume to go on with it, "
        raise SettingsError(
            f"output_dir {folder} already has a run; give {goes_on}another folder, or --overwrite to empty this one"
        )


def check_new(folder: Path) -> None:
    """Raise CheckpointError if a folder to write a model to is a file, or has anything in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not empty; give a new or empty folder")


def is_empty(folder: str | Path) -> bool:
    """Whether the folder does not exist, or has nothing but unfinished files of `write_whole`."""
    folder = Path(folder)
    return not folder.is_dir() or all(item.name.endswith(UNFINISHED) for item in folder.iterdir())


def _unusable(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(f"output_dir {str(folder)[:200]} cannot be used: {error.strerror}; give another folder")


def check_inputs(folder: str | Path, inputs: list[str | None]) -> None:
    """Raise SettingsError if the output folder contains an input of the run, which `--overwrite` would delete."""
    folder = Path(folder).resolve()
    for name in inputs:
        if name and Path(name).exists() and Path(name).resolve().is_relative_to(folder):
            raise SettingsError(f"output_dir {folder} contains {name}, which this run reads; give another output_dir")


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Lock a folder for this run, and create it if it does not exist.

    Raises:
        SettingsError: the folder cannot be created, or another run is using it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RUNNING).open("ab")
    except OSError as error:
        raise _unusable(folder, error) from error
    with file:
        try:  # the kernel releases the lock when the process ends, and children do not inherit it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a run that ended between open and lock has deleted the file that is locked here
            is_locked = (folder / RUNNING).stat().st_ino == os.fstat(file.fileno()).st_ino
        except OSError as error:
            # other errors come from file systems without locks
            is_locked = error.errno not in (errno.EAGAIN, errno.EACCES, errno.ENOENT)
        if not is_locked:
            raise SettingsError(
                f"another run is using output_dir {folder}; wait until it has ended, or give another folder"
            )
        try:
            yield
        finally:
            (folder / RUNNING).unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text file atomically: after a crash it is complete, or as it was before.

    Raises:
        OSError: the file cannot be written; an older one of that name is unchanged.
    """
    aside = file.with_name(f"{file.name}{UNFINISHED}")
    aside.write_text(text, encoding="utf-8")
    flush(aside)
    os.replace(aside, file)
    flush(file.parent)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """Return the versions of the software that a run's figures depend on."""
    import quietstar

    return {
        "quietstar": quietstar.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
