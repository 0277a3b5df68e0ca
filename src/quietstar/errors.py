"""The errors that users meet. One base class; a message says what was given, what is allowed, what to do."""

import importlib
import pickle
import reprlib
from types import ModuleType
from typing import Any


class QuietStarError(Exception):
    """Base of every error that this package raises for something a user can put right.

    Attributes:
        exit_code: what a command ends with.
    """

    exit_code = 2


class SettingsError(QuietStarError, ValueError):
    """A setting is impossible, alone or beside the others."""


class UnsupportedModelError(QuietStarError):
    """The base model cannot be served: its attention, cache or head does not do what a thought grid needs."""


class CheckpointError(QuietStarError):
    """A folder does not hold the checkpoint that was asked for."""


class DataError(QuietStarError):
    """A dataset, file, column or template does not give the text that was asked for."""


class MissingExtraError(QuietStarError, ImportError):
    """A situational package is not installed.

    Args:
        package: the package that failed to import.
        extra: the extra of this package that installs it.
        purpose: what it is needed for, as it stands after "for".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is not installed and is needed for {purpose}: pip install 'quietstar[{extra}]'")


class BadStepsError(QuietStarError):
    """Too many training steps in a row had a loss or gradient that the optimizer may not see."""


class OutOfMemoryError(QuietStarError):
    """A training step does not fit into memory."""


class InterruptedRunError(QuietStarError):
    """A signal has ended a training run, after a checkpoint was written."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def need(package: str, extra: str, purpose: str) -> ModuleType:
    """A package of an extra.

    Args:
        package: to import; a module of it, such as pyarrow.parquet, is imported with it.
        extra: of ours, which installs it.
        purpose: what it is needed for, as it stands after "for".

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.import_module(package)
        return importlib.import_module(package.partition(".")[0])
    except ImportError as error:
        raise MissingExtraError(package.partition(".")[0], extra, purpose) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or so much of it as one reads."""
    return (_message(error).strip() or type(error).__name__).splitlines()[0][:300]


def reason(error: BaseException) -> str:
    """An error's type and message on one line, for those whose message does not say what they are."""
    return f"{type(error).__name__}: {' '.join(_message(error).split())[:300]}"


def _message(error: BaseException) -> str:
    """What an error says, without a stack of C++, and without torch's advice to open a pickle all the same."""
    if isinstance(error, pickle.UnpicklingError):
        return "a pickle that is damaged, or holds more than tensors, was not opened"
    return str(error).split("\nException raised from")[0]


def shown(value: Any) -> str:
    """A value as a message says it: on one line, and not long."""
    try:
        return reprlib.repr(value)
    except ValueError:  # so many digits are not written out
        return f"{type(value).__name__} of thousands of digits"
