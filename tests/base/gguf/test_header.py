"""A GGUF file's header is read as written; a damaged or foreign file fails at once, with one line."""

import random
import struct
import time
from pathlib import Path

import pytest

from quietstar.base.gguf.header import read_header
from quietstar.base.loading import load_base, load_tokenizer
from quietstar.errors import CheckpointError, MissingExtraError, QuietStarError
from quietstar.scaling.shape import read_config
from tests.tiny_gguf import gguf, metadata_of, tensors_of, tiny_llama, write_gguf

STRINGS = struct.pack("<IQ", 8, 2**60)


def test_fields_and_shapes_are_those_that_were_written(file):
    model, header = tiny_llama(), read_header(file)
    written = metadata_of(model)
    for name, value in written.items():
        assert header.fields[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    shapes = {name: tuple(reversed(tensor.shape)) for name, tensor in tensors_of(model).items()}
    assert header.shapes == shapes
    assert header.n_weights == sum(tensor.numel() for tensor in tensors_of(model).values())
    theirs = gguf.GGUFReader(file)
    assert header.fields.keys() == {name for name in theirs.fields if not name.startswith("GGUF.")}


def refused(file: Path, words: str) -> None:
    """Everything that reads a model refuses the file, in one line that names it."""
    for read in (load_base, load_tokenizer, lambda name: read_config(str(name))):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"GG", "ends at byte 2"),
        (random.Random(0).randbytes(5000), "does not begin with GGUF"),
        (b"PK\3\4" + bytes(5000), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "has no general.architecture"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63), "inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<I", 9) + STRINGS, "inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<IIQ", 9, 0, 2**60), "inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<IIQ", 9, 9, 1), "values of type 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<I", 77), "type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<IB", 0, 1), "utf-8"),
    ],
)
def test_files_that_are_not_gguf(tmp_path, content, words):
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    began = time.perf_counter()
    refused(file, words)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_a_truncated_file(file, tmp_path, share):
    cut, whole = tmp_path / "cut.gguf", file.read_bytes()
    cut.write_bytes(whole[: int(len(whole) * share)])
    refused(cut, "its tensors need" if share > 0.1 else "inside its header")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"split.count": 3}, "one of 3 parts of a model; merge them"),
        ({"tokenizer.ggml.tokens": 5}, "its tokenizer.ggml.tokens is 5"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "are not all strings"),
        ({"tokenizer.chat_template": 1.5}, "its tokenizer.chat_template is 1.5"),
        ({"general.alignment": 0}, "its general.alignment is 0"),
    ],
)
def test_impossible_fields(tmp_path, metadata, words):
    refused(write_gguf(tmp_path / "odd.gguf", tiny_llama(), metadata), words)


def test_bytes_at_random(file, tmp_path):
    """Whatever the header contains, the result is a model or a one-line error."""
    whole, rng, messages = file.read_bytes(), random.Random(0), []
    end = whole.index(b"token_embd.weight") + 1500
    for number in range(40):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 4])):
            data[rng.randrange(end)] = rng.choice([0, 1, 255, rng.randrange(256)])
        spoilt = tmp_path / f"{number}.gguf"
        spoilt.write_bytes(data)
        for read in (load_base, load_tokenizer):
            try:
                read(spoilt)
            except QuietStarError as error:
                messages.append(str(error))
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


def test_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    for read in (load_base, load_tokenizer):
        with pytest.raises(MissingExtraError, match=r"gguf is not installed .* pip install 'quietstar\[gguf\]'"):
            read(file)
