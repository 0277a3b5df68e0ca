"""The size of a cache is told before it grows, and is never above what is told."""

from pathlib import Path

import pytest
import torch

from quietstar.errors import CheckpointError
from quietstar.training.distillation.cache import Cache


def rows(n: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    ids = torch.randint(1000, (n, length), generator=torch.Generator().manual_seed(0))
    where = torch.arange(length) < length - 1
    return [(row, where) for row in ids]


def said(of: list[tuple[torch.Tensor, torch.Tensor]], k: int) -> list[list[torch.Tensor]]:
    n = [int(where.sum()) for _, where in of]
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(1000, (each, k), generator=generator) for each in n]
    return [tokens, [torch.randn(each, k, generator=generator) for each in n], [torch.randn(each) for each in n]]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    cache, of = Cache(str(tmp_path / "cache"), 8, {"teacher": "x"}), rows(5, 20)
    assert cache.read(of) is None
    written = said(of, 8)
    cache.write(of, written)
    for again in (cache, Cache(str(tmp_path / "cache"), 8, {"teacher": "x"})):
        found = again.read(of)
        assert found is not None
        for ours, theirs in zip(found, written, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert cache.read([*of, *rows(1, 7)]) is None, "rows of a batch are said together"
    other_labels = [(ids, where.roll(-1)) for ids, where in of]
    assert cache.read(other_labels) is None


def test_its_size_is_what_was_told(tmp_path: Path) -> None:
    cache, of = Cache(str(tmp_path / "cache"), 64, {}), rows(50, 257)
    cache.write(of, said(of, 64))
    size = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.safetensors"))
    told = cache.words(50, 257)
    assert told == (
        f"the cache keeps 64 tokens of each prediction: at most {50 * 256 * 516 / 1e9:.3g} GB for 50 rows of 257 tokens"
    )
    assert size == pytest.approx(50 * 256 * 516, rel=0.01)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache, of = Cache(str(tmp_path / "cache"), 8, {}), rows(2, 5)
    monkeypatch.setattr("quietstar.training.distillation.cache.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written .*; make room, or leave the cache out"):
        cache.write(of, said(of, 8))
