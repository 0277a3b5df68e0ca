"""Folders of runs: nothing that lies in one is overwritten unasked."""

import errno
import fcntl
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

from quietstar.errors import SettingsError

MARKER = "run.json"
"""lies in every folder of ours, with the settings of the run"""
UNFINISHED = ".being-written"
"""ends the names of files that are being written"""
RUNNING = f"run{UNFINISHED}"
"""lies in a folder while a run is at work in it, which holds a lock on it; or after one that was killed"""


def claim(folder: str | Path, settings: dict[str, Any], *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make a folder ours for a run, and write down its settings.

    Args:
        folder: empty or not there yet; or a run of ours, to be resumed or emptied.
        settings: what is written to run.json.
        overwrite: empty a folder that holds a run of ours.
        resume: go on in a folder that holds a run of ours.

    Raises:
        SettingsError: the folder cannot be made, or it holds something, and it is not said what to do, or it is no run
            of ours.
    """
    refuse_full(folder, overwrite=overwrite, resume=resume)
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


def refuse_full(folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise where `claim` would, without touching anything: worth asking before long work."""
    folder = Path(folder)
    try:
        is_run = (folder / MARKER).is_file()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise _unusable(folder, error) from error
    if not there.is_dir():
        if there == folder:
            raise SettingsError(f"output_dir {folder} is a file; give a folder")
        raise SettingsError(f"output_dir {folder} would lie in {there}, which is a file; give another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(f"output_dir {folder} cannot be written: {there} is not yours to write in; give another")
    if resume and not is_run:
        raise SettingsError(f"output_dir {folder} holds no run to resume; leave that option out")
    if resume or is_empty(folder):
        return
    if not is_run:
        raise SettingsError(f"output_dir {folder} holds files that are no run of ours; give an empty or a new folder")
    if not overwrite:
        raise SettingsError(
            f"output_dir {folder} holds a run already; give another folder, or --overwrite to empty this one"
        )


def is_empty(folder: str | Path) -> bool:
    """Whether there is nothing in it but what `write_whole` has left unfinished, or there is no such folder."""
    folder = Path(folder)
    return not folder.is_dir() or all(item.name.endswith(UNFINISHED) for item in folder.iterdir())


def _unusable(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(f"output_dir {str(folder)[:200]} cannot be used: {error.strerror}; give another folder")


def refuse_holding(folder: str | Path, inputs: list[str | None]) -> None:
    """Raise where a run's own folder holds what it reads, which `--overwrite` would delete."""
    folder = Path(folder).resolve()
    for name in inputs:
        if name and Path(name).exists() and Path(name).resolve().is_relative_to(folder):
            raise SettingsError(f"output_dir {folder} holds {name}, which this run reads; give another output_dir")


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Be the only run in a folder, which is made where it is not there.

    Raises:
        SettingsError: the folder cannot be made, or another run is at work in it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RUNNING).open("ab")
    except OSError as error:
        raise _unusable(folder, error) from error
    with file:
        try:  # a lock that ends with the process, and that its children do not share
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = (folder / RUNNING).stat().st_ino == os.fstat(file.fileno()).st_ino  # or its holder has just ended
        except OSError as error:
            # other errors are those of a file system that knows no locks
            is_ours = error.errno not in (errno.EAGAIN, errno.EACCES, errno.ENOENT)
        if not is_ours:
            raise SettingsError(
                f"another run is at work in output_dir {folder}; wait until it has ended, or give another folder"
            )
        try:
            yield
        finally:
            (folder / RUNNING).unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there as a whole, or not at all, whenever the machine stops.

    Raises:
        OSError: it cannot be written; one of that name is as it was.
    """
    aside = file.with_name(f"{file.name}{UNFINISHED}")
    aside.write_text(text, encoding="utf-8")
    flush(aside)
    os.replace(aside, file)
    flush(file.parent)


def flush(path: Path) -> None:
    """Have the disk itself hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """Of what the figures of a run depend on."""
    import quietstar

    return {
        "quietstar": quietstar.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
