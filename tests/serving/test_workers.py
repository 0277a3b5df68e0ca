"""Several processes behind one port: all answer, one that dies is replaced, and they end together."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.cli import call
from tests.processes import Command
from tests.tiny_tokenizer import thinking_folders


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Command, str]]:
    """Run two processes: the command, and its address."""
    with Command("-m", "quietstar", "serve", folder, "--port", 0, "--workers", 2, TQDM_DISABLE="1") as process:
        says = r"^serving thinking at (http://127\.0\.0\.1:\d+), by 2 processes\n"
        while not (found := re.search(says, process.stderr, re.M)):
            assert process.is_running, process.stderr
            time.sleep(0.05)
        yield process, found[1]


def answered(address: str, **more: float) -> list:
    """Return what a completion answers, by default a greedy one, without its id and time."""
    body = json.dumps({"prompt": "one two", "max_tokens": 5, "temperature": 0} | more).encode()
    with urlopen(
        Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"}), timeout=60
    ) as answer:
        return json.load(answer)["choices"]


def children(process: Command) -> list[int]:
    """Return the processes that serve."""
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, task) if b"spawn_main" in command_of(pid)]


def command_of(pid: int) -> bytes:
    """Return a process's command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_two_processes_serve_until_they_are_told_to_stop(tmp_path: Path) -> None:
    """One that is killed is replaced; their metrics are added up; SIGTERM ends them all."""
    folder = thinking_folders(tmp_path, n_ahead=4) / "thinking"
    with serving(folder) as (process, address):
        first = children(process)
        assert len(first) == 2
        same = answered(address)
        assert all(answered(address) == same for _ in range(9))
        with urlopen(f"{address}/metrics", timeout=60) as page:
            metrics = page.read().decode()
        assert 'quietstar_requests_total{endpoint="/v1/completions",status="200"} 10.0' in metrics
        os.kill(first[0], signal.SIGKILL)
        while len(now := children(process)) != 2 or now == first:
            assert process.is_running, process.stderr
            time.sleep(0.05)
        assert "a process has ended with code -9; another takes its place" in process.stderr
        (other,) = [pid for pid in now if pid not in first]
        os.kill(other, signal.SIGKILL)  # while it is loading: the one that serves goes on
        assert answered(address) == same
        while len(now := children(process)) != 2 or other in now:
            assert process.is_running, process.stderr
            time.sleep(0.05)
        assert "it could not serve: see above" in process.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        assert "Traceback" not in process.stderr
        assert "leaked" not in process.stderr
        assert not any(Path(f"/proc/{pid}").exists() for pid in now)


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Even if that is killed: nobody else could end them."""
    with serving(thinking_folders(tmp_path, n_ahead=4) / "thinking") as (process, _):
        left = children(process)
        os.kill(process.pid, signal.SIGKILL)
        for _ in range(600):
            if not any(b"spawn_main" in command_of(pid) for pid in left):
                return
            time.sleep(0.1)
    raise AssertionError("they go on")


def test_processes_give_other_seeds(tmp_path: Path) -> None:
    """To requests without one."""
    with serving(thinking_folders(tmp_path, n_ahead=4) / "thinking") as (_, address):
        texts = [str(answered(address, temperature=1.5, max_tokens=20)) for _ in range(16)]
        assert len(set(texts)) == 16


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From all processes together."""
    assert call("serve", tmp_path / "none", "--port", 0, "--workers", 2) == 2
    said = capfd.readouterr().err
    assert said.count("quietstar serve: ") == 1
    assert "there is no model" in said
    assert "Traceback" not in said
    assert call("serve", tmp_path / "none", "--workers", 0) == 2
    assert "workers is 0; give a number of at least 1" in capfd.readouterr().err
