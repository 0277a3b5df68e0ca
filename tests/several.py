"""Two processes over gloo that run one function after another, each on both: `Pair`."""

import gc
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import soak
import torch
import torch.multiprocessing as multiprocessing

SECONDS = 300
"""for one function; processes that wait for one another would never end"""


class Pair:
    """Two processes of one world.

    A call with a function of a module, and its arguments, runs it on both and gives both results.
    """

    def __init__(self) -> None:
        self.processes: list[Any] = []

    def _start(self) -> None:
        port = soak.free_port()
        context = soak.forkserver()
        ends = [context.Pipe() for _ in range(2)]
        self.connections = [ours for ours, _ in ends]
        self.processes = [
            context.Process(target=_serve, args=(rank, port, theirs)) for rank, (_, theirs) in enumerate(ends)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        if not self.processes:
            self._start()
        for connection in self.connections:
            connection.send((function, args, kwargs))
        results = []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(SECONDS):
                self.close()
                raise TimeoutError(f"process {rank} of two still waits: they do not make the same passes")
            try:
                result, failure = connection.recv()
            except EOFError:
                self.close()
                raise RuntimeError(f"process {rank} of two has died") from None
            if failure:
                self.close()
                raise RuntimeError(f"process {rank} of two:\n{failure}")
            results.append(result)
        return results

    def close(self) -> None:
        """End both."""
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []


def _serve(rank: int, port: int, connection: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
    }
    torch.set_num_threads(1)
    gc.freeze()
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in processes that a launcher starts
    while True:
        function, args, kwargs = connection.recv()
        _forget_accelerator()
        try:
            connection.send((function(*args, **kwargs), None))
        except BaseException:
            connection.send((None, traceback.format_exc()))


def _forget_accelerator() -> None:
    """Accelerate keeps its first settings for the life of a process."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        os.environ.pop(name, None)
