"""A tiny model in a GGUF file."""

from pathlib import Path

import pytest

from tests.tiny_gguf import tiny_llama, write_gguf


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a Llama whose LM head is a matrix of its own; in a folder that holds nothing else."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf", tiny_llama())
