"""Signals by which machines are taken away: a run saves and ends."""

import signal
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""what clouds and cluster schedulers send before they take a machine away"""


class StopSignals:
    """Notes the first such signal while a run is under way, in the main thread; a second one does what it always did.

    Attributes:
        received: the name of the signal, None as long as there was none.
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
