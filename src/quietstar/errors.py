"""The errors that users see. One base class; a message says what was given, what is allowed, and what to do."""

import difflib
import importlib
import pickle
import reprlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class QuietStarError(Exception):
    """Base of every error that a user can fix.

    Attributes:
        exit_code: of a command that fails with this error.
    """

    exit_code = 2


class SettingsError(QuietStarError, ValueError):
    """A setting is invalid, or does not fit another one."""


class UnsupportedModelError(QuietStarError):
    """The base model cannot be used: its attention, cache or head does not do what a thought grid needs."""


class CheckpointError(QuietStarError):
    """A folder does not have the checkpoint that was asked for."""


class DataError(QuietStarError):
    """A dataset, file, column or template does not yield the text that was asked for."""


class MissingExtraError(QuietStarError, ImportError):
    """An optional package, which an extra of this package installs, is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is not installed and is needed for {purpose}: pip install 'quietstar[{extra}]'")


class BadStepsError(QuietStarError):
    """Too many training steps in a row had a loss or gradient that must not reach the optimizer."""


class OutOfMemoryError(QuietStarError):
    """A training step does not fit into memory."""


class InterruptedRunError(QuietStarError):
    """A signal ended a training run, after a checkpoint was written."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def need(package: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that an extra installs, and return it.

    Args:
        package: to import; a module of it, such as pyarrow.parquet, is imported with it.
        extra: of this package, which installs it.
        purpose: what it is needed for; it follows "for" in the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.import_module(package)
        return importlib.import_module(package.partition(".")[0])
    except ImportError as error:
        raise MissingExtraError(package.partition(".")[0], extra, purpose) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, up to 300 characters."""
    return (_message(error).strip() or type(error).__name__).splitlines()[0][:300]


def reason(error: BaseException) -> str:
    """Return an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(_message(error).split())[:300]}"


def _message(error: BaseException) -> str:
    """Return an error's message without a C++ stack, and without torch's advice to open the pickle anyway."""
    if isinstance(error, pickle.UnpicklingError):
        return "a pickle that is damaged, or contains more than tensors, was not opened"
    return str(error).split("\nException raised from")[0]


def shown(value: Any) -> str:
    """Return a value for a message: on one line, and short."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print so many digits
        return f"{type(value).__name__} of thousands of digits"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint of the known word that is nearest, to end a message with; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
