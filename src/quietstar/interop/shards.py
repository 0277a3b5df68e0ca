"""Sharded checkpoints, as training writes them if a model is sharded over processes, put together."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from quietstar.base.untrusted import loading
from quietstar.config import QuietStarConfig
from quietstar.errors import CheckpointError, reason
from quietstar.model import QuietStarForCausalLM

MODEL = "model-shards"
"""folder of a checkpoint with the shards of the model, as safetensors"""


def consolidate(checkpoint: Path, folder: Path) -> None:
    """Put the shards of a checkpoint together, in a folder, into a model that `from_pretrained` loads.

    The folder must exist. One process is enough.

    Raises:
        CheckpointError: a shard cannot be read, or a weight is missing.
    """
    try:
        reader = HuggingFaceStorageReader(str(checkpoint / MODEL))
        described = reader.read_metadata().state_dict_metadata
        state = {
            name: torch.empty(tensor.size, dtype=tensor.properties.dtype)  # type: ignore[union-attr]
            for name, tensor in described.items()
        }
        for name, tensor in described.items():
            if sum(chunk.sizes.numel() for chunk in tensor.chunks) != tensor.size.numel():  # type: ignore[union-attr,misc]
                raise ValueError(f"a shard with a part of {name} is missing")
        distributed_checkpoint.load(state, storage_reader=reader, no_dist=True)
    except Exception as error:
        raise CheckpointError(
            f"the shards in {checkpoint / MODEL} cannot be put together ({reason(error)}); give a complete checkpoint"
        ) from error
    with loading(checkpoint):
        config = QuietStarConfig.from_pretrained(checkpoint)
        with torch.device("meta"):
            model = QuietStarForCausalLM(config)
    if tied := getattr(model, "all_tied_weights_keys", {}).keys() & state.keys():
        raise CheckpointError(
            f"{checkpoint} has {min(tied)}, and its config ties it to the embeddings; set "
            "tie_word_embeddings to false in the base_config of its config.json"
        )
    expected = without_tied(model, model.state_dict())
    if missing := sorted(expected.keys() - state.keys()):
        raise CheckpointError(
            f"{checkpoint} lacks {len(missing)} of the model's weights, first {missing[0]}; give a complete one"
        )
    if others := sorted(name for name, value in expected.items() if value.shape != state[name].shape):
        raise CheckpointError(
            f"{checkpoint} has {others[0]} of {list(state[others[0]].shape)}, and its config describes one of "
            f"{list(expected[others[0]].shape)}; give a checkpoint whose config.json and shards belong together"
        )
    model.save_pretrained(folder, state_dict=state)


def without_tied(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state without the second names of tied weights."""
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: value for name, value in state.items() if name not in tied}
