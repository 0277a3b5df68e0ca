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


class Workers:
    """N processes that do the same work, which is picklable."""

    def __init__(self, n: int, door: socket.socket, work: Work) -> None:
        self.n, self.door, self.work = n, door, work
        self.context = multiprocessing.get_context("spawn")
        self.refusals = self.context.SimpleQueue()
        """messages of processes that cannot serve"""
        self.processes: dict[SpawnProcess, Event] = {}
        """with whether each is ready"""

    def run(self, when_ready: Callable[[], None]) -> None:
        """Serve until SIGINT or SIGTERM, which is raised again at the end; `when_ready` is called when all serve.

        Raises:
            SettingsError: a process cannot serve.
        """
        with _signals() as received, tempfile.TemporaryDirectory(prefix="quietstar-metrics-") as folder:
            os.environ[SHARED] = folder
            try:
                for _ in range(self.n):
                    self._start()
                is_ready = False
                while not received:
                    wait([process.sentinel for process in self.processes], timeout=SECONDS)
                    self._replace_dead(folder)
                    if not is_ready and all(ready.is_set() for ready in self.processes.values()):
                        is_ready = True
                        when_ready()
            finally:
                self._stop()
                del os.environ[SHARED]
        signal.raise_signal(received[0])

    def _start(self) -> None:
        ready = self.context.Event()
        process = self.context.Process(target=_work, args=(self.work, self.door, ready, self.refusals, self.n))
        process.start()
        self.processes[process] = ready

    def _replace_dead(self, folder: str) -> None:
        for process, ready in [*self.processes.items()]:
            if process.is_alive():
                continue
            multiprocess.mark_process_dead(process.pid, folder)
            del self.processes[process]
            if not self.refusals.empty():
                raise SettingsError(self.refusals.get())
            if not ready.is_set():
                raise SettingsError(f"a process ended with code {process.exitcode} before it could serve; see above")
            logger.error("a process that served has ended with code %s; another takes its place", process.exitcode)
            self._start()

    def _stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


def _work(work: Work, door: socket.socket, ready: Event, refusals: SimpleQueue[str], n: int) -> None:
    """What a process does: serve, with its share of the processors."""
    log_to_terminal()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // n))
    try:
        work(door, ready.set)
    except QuietStarError as error:
        refusals.put(str(error))


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
