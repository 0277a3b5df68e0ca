"""Signals that announce the end of a machine, and Ctrl-C: a run saves and ends."""

import logging
import signal
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""what clouds and cluster schedulers send before they stop a machine, and what Ctrl-C sends"""


class StopSignals:
    """Notes the first such signal during a run, in the main thread; a second one acts as it did before the run.

    Attributes:
        received: the name of the signal; None until one arrives.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, self._before[number])
        logger.info("%s: the run saves after this step, and ends; once more ends it at once", self.received)
