"""Shards of a checkpoint are put together only if they are all there."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError
from quietstar.interop.shards import MODEL, consolidate, without_tied
from tests.tiny import tiny_model


def sharded(folder: Path) -> QuietStarForCausalLM:
    """A checkpoint in two files: the rows of each matrix are split between them."""
    model = tiny_model(n_ahead=4)
    model.config.save_pretrained(folder)
    state = without_tied(model, dict(model.state_dict()))
    writer = HuggingFaceStorageWriter(path=str(folder / MODEL), save_distributed=True)
    distributed_checkpoint.save(state, storage_writer=writer, no_dist=True)
    (file,) = (folder / MODEL).glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        described = opened.metadata()
    split_rows(file, described)
    return model


def split_rows(file: Path, described: dict[str, str]) -> None:
    """Split a file of `HuggingFaceStorageWriter` in two, as two processes would write it."""
    state, offsets = load_file(file), json.loads(described["DCP_SHARDING_INFO"])
    file.unlink()
    for part in range(2):
        own, where = {}, {}
        for name, value in state.items():
            half = len(value) // 2
            own[name] = (value[half:] if part else value[:half]).contiguous() if half else value
            first = offsets[name]["saved_offsets"]
            where[name] = {**offsets[name], "saved_offsets": [half * part, *first[1:]]} if half else offsets[name]
            if not half and part:
                del own[name], where[name]
        metadata = {**described, "DCP_SHARDING_INFO": json.dumps(where)}
        save_file(own, file.with_name(f"shard-0000{part + 1}-model-00001-of-00001.safetensors"), metadata=metadata)


def test_shards_become_a_model(tmp_path: Path) -> None:
    model = sharded(tmp_path / "checkpoint")
    consolidate(tmp_path / "checkpoint", tmp_path)
    found = QuietStarForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("part", [1, 2])
def test_a_missing_shard_is_told(tmp_path: Path, part: int) -> None:
    """Not filled with whatever the memory held."""
    sharded(tmp_path / "checkpoint")
    next((tmp_path / "checkpoint" / MODEL).glob(f"shard-0000{part}-*")).unlink()
    with pytest.raises(CheckpointError, match=r"(is missing.*; give a complete checkpoint|its config describes)"):
        consolidate(tmp_path / "checkpoint", tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
