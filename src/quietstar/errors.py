"""The errors that users meet. One base class; a message says what was given, what is allowed, what to do."""


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
