"""Several processes that serve one model behind one port, each with a copy of the model.

The processes accept connections from the same socket, and one that dies is replaced. uvicorn has a supervisor of its
own, but it starts uvicorn's plain server, which would neither end running streams nor drop clients that do not read.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event

import torch
from prometheus_client import multiprocess

from quietstar.errors import QuietStarError, SettingsError
from quietstar.runs.log import log_to_terminal
from quietstar.serving.metrics import SHARED

logger = logging.getLogger(__name__)

Work = Callable[[socket.socket, Callable[[], None]], None]
"""serves at a socket until a signal, and calls its second argument when it is ready"""
SECONDS = 0.2
"""between looks at signals"""
RETRY_SECONDS = 2
"""until another process takes the place of one that could not serve"""
LAST_SECONDS = 15
"""for a process to end its streams when it is told to stop"""


class Workers:
    """N processes that do the same work, which is picklable."""

    def __init__(self, n: int, door: socket.socket, work: Work) -> None:
        self.n, self.door, self.work = n, door, work
        self.context = multiprocessing.get_context("spawn")
        self.refusals = self.context.SimpleQueue()
        """messages of processes that cannot serve"""
        self.processes: dict[SpawnProcess, Event] = {}
        """with whether each is ready"""

    def run(self, when_ready: Callable[[], None]) -> int:
        """Serve until SIGINT or SIGTERM, and return which; `when_ready` is called when all serve.

        Raises:
            SettingsError: a process cannot serve, the first time.
        """
        with _signals() as received, tempfile.TemporaryDirectory(prefix="quietstar-metrics-") as folder:
            os.environ[SHARED] = folder
            try:
                for _ in range(self.n):
                    self._start()
                is_ready = False
                while not received:
                    wait([process.sentinel for process in self.processes], timeout=SECONDS)
                    if not received:
                        self._replace_dead(folder, is_ready)
                    if not is_ready and all(ready.is_set() for ready in self.processes.values()):
                        is_ready = True
                        when_ready()
            finally:
                self._stop()
                del os.environ[SHARED]
        return received[0]

    def _start(self) -> None:
        ready = self.context.Event()
        process = self.context.Process(target=_work, args=(self.work, self.door, ready, self.refusals, self.n))
        # Ctrl-C reaches all processes of a terminal: one that is still loading leaves it to this one
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, before)
        self.processes[process] = ready

    def _replace_dead(self, folder: str, has_served: bool) -> None:
        for process in [each for each in self.processes if not each.is_alive()]:
            multiprocess.mark_process_dead(process.pid, folder)
            was_ready = self.processes.pop(process).is_set()
            refusal = None if self.refusals.empty() else self.refusals.get()
            if not (has_served or was_ready):
                ended = f"a process ended with code {process.exitcode} before it could serve; see above"
                raise SettingsError(refusal or ended)
            logger.error("a process has ended with code %s; another takes its place", process.exitcode)
            if not was_ready:
                logger.error("it could not serve: %s", refusal or "see above")
                time.sleep(RETRY_SECONDS)
            self._start()

    def _stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(LAST_SECONDS)
            process.kill()
            process.join()


def _work(work: Work, door: socket.socket, ready: Event, refusals: SimpleQueue[str], n: int) -> None:
    """What a process does: serve, with its share of the processors, until the process that has started it is gone."""
    log_to_terminal()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // n))
    try:
        work(door, ready.set)
    except QuietStarError as error:
        refusals.put(str(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of being interrupted by them."""
    received: list[int] = []
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
