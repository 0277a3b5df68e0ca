"""Commands in processes of their own, without the seconds in which each would import torch: `Command`."""

import os
import runpy
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import soak
import torch

SECONDS = 300
"""for one command"""


class Command:
    """`python WORDS`, as a process that is forked from one that has imported torch and its like.

    Leaving its block ends it, and what it has printed is gone.

    Args:
        words: what follows `python`: `-m`, a module and its arguments, or a script and its arguments.
        environment: variables beside those of the process that forks.
    """

    def __init__(self, *words: object, **environment: str) -> None:
        self._said = Path(tempfile.mkdtemp(prefix="quietstar-command-"))
        surroundings = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
        given = ([str(word) for word in words], surroundings, str(self._said))
        self._process = soak.forkserver().Process(target=_run, args=given)
        self._process.start()

    def __enter__(self) -> "Command":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._said)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        """What it has printed so far."""
        return self._read("stderr")

    def _read(self, name: str) -> str:
        file = self._said / name
        return file.read_text() if file.exists() else ""

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = SECONDS) -> int:
        """Return its exit code; that of a process ended by a signal is the signal's number below zero."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"after {seconds} seconds it still runs, and has said: {self.stdout} {self.stderr}")
        return self._process.exitcode


def _run(words: list[str], environment: dict[str, str], said: str) -> None:
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        file = Path(said) / ("stdout", "stderr")[number - 1]
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        stream.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
