"""Digests depend on contents, not on names of files."""

import os
from pathlib import Path

import pytest

from quietstar.runs import contents
from quietstar.runs.contents import digest_of_files, digest_of_model


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat files of more than 1,000 bytes as large."""
    for name, value in {"WHOLE": 1000, "PARTS": 8, "PART": 64}.items():
        monkeypatch.setattr(contents, name, value)


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 20_000])
def test_names_do_not_count_and_bytes_do(size: int, tmp_path: Path, small_parts: None) -> None:
    data = os.urandom(size)
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for file in files:
        file.write_bytes(data)
    digest = digest_of_files(files[:1])
    assert digest == digest_of_files(files[1:])
    for other in (data + b"x", data[:-1] + bytes([data[-1] ^ 1]) if size else b"y", b"x" + data[1:] if size else b"z"):
        if other != data:
            files[0].write_bytes(other)
            assert digest_of_files(files[:1]) != digest


def test_order_and_borders_count(tmp_path: Path) -> None:
    for name, data in (("a", b"12"), ("b", b"3"), ("c", b"1"), ("d", b"23")):
        (tmp_path / name).write_bytes(data)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert len({digest_of_files(files) for files in ([a, b], [b, a], [c, d], [a], [])}) == 5


def test_weights_are_a_models(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digest = digest_of_model(tmp_path)
    (tmp_path / "README.md").write_text("about it")
    assert digest == digest_of_model(f"{tmp_path}/") == digest_of_model(tmp_path / "model.safetensors") is not None
    (tmp_path / "copy.gguf").write_bytes(b"the same weights")
    assert digest_of_model(tmp_path) == digest
    (tmp_path / "adapter.safetensors").write_bytes(b"more")
    assert digest_of_model(tmp_path) != digest
    assert digest_of_model("an/name-of-the-hub") is None


def test_a_gguf_file_is_known_by_its_path_and_by_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"weights")
    digest = digest_of_files([file])
    assert digest_of_model(file) == digest_of_model(tmp_path) == digest
    file.write_bytes(b"others!")
    assert digest_of_model(tmp_path) != digest
