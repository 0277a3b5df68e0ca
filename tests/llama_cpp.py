"""llama.cpp itself, by its Python package xllamacpp: what it predicts, and which tokens it makes of a text."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (package xllamacpp)")


class LlamaCpp:
    """A GGUF file that llama.cpp has loaded."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def greedy(self, prompt: list[int], n: int) -> tuple[list[int], list[float]]:
        """Continue a prompt by its likeliest tokens; return their ids and log-probabilities.

        Tokens that end the text, or end within a character, are not reported: a model must not predict them.
        """
        ids, logprobs = list(prompt), []
        for _ in range(n):
            answer = self._post("completion", prompt=ids, n_predict=1, temperature=0, n_probs=1)
            (found,) = answer["completion_probabilities"]
            ids.append(found["id"])
            logprobs.append(found["logprob"])
        return ids[len(prompt) :], logprobs

    def tokens(self, text: str) -> list[int]:
        return self._post("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def _post(self, path: str, **asked: Any) -> Any:
        request = urllib.request.Request(
            f"{self.server.listening_address}/{path}", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextmanager
def llama_cpp(file: Path) -> Iterator[LlamaCpp]:
    """Load a GGUF file, with float32 keys and values, on one thread."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = 256
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.verbosity = 0  # errors only
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server)
    finally:
        del server
