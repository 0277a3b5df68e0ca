"""Saving and loading of model and optimizer in a checkpoint: whole, or in one shard for each process.

Shards are written as safetensors by torch's distributed checkpoints, whose other format, pickle, could run code.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.errors import CheckpointError, SettingsError
from quietstar.interop.shards import MODEL, without_tied

OPTIMIZER = "optimizer.pt"
OPTIMIZER_SHARDS = "optimizer-shards"
SETTINGS = "optimizer.json"
"""what an optimizer has besides tensors"""
SCHEDULER = "scheduler.pt"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def refuse_recomputing(plugin: Any) -> None:
    """Raise SettingsError if FSDP is to recompute layers, which would write to their caches twice."""
    if plugin.activation_checkpointing:
        raise SettingsError(
            "fsdp_activation_checkpointing is on, and would run layers a second time over caches that they have "
            "written to; switch it off, and give --gradient_checkpointing"
        )


def save_pretrained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, **how: Any
) -> None:
    """Write a model, as its `save_pretrained` does with these arguments, and its tokenizer."""
    model.save_pretrained(folder, **how)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    checkpoint: Path,
    *,
    sharded: bool,
    is_first: bool,
) -> None:
    """Write a model: each process its shards, or the first process the whole model, and config and tokenizer.

    Weights have the names of the model, by which a run resumes: some families publish them under others.
    """
    if sharded:
        _save(without_tied(model, get_model_state_dict(model)), checkpoint / MODEL)
    if not is_first:
        return
    if not sharded:
        save_pretrained(model, tokenizer, checkpoint, save_original_format=False)
        return
    for each in (model.config, model.generation_config if model.can_generate() else None, tokenizer):
        if each is not None:
            each.save_pretrained(checkpoint)


def load_model(model: nn.Module, checkpoint: Path, *, sharded: bool) -> None:
    """Load a model: its shards, written by any number of processes; or the whole model.

    Of a quantized model only the weights that train are loaded: the frozen ones are as they were, and may be packed
    differently here.

    Raises:
        CheckpointError: a weight is missing; a resumed run must not continue with a fresh one.
    """
    if sharded:
        state = get_model_state_dict(model)
        _load(without_tied(model, state), checkpoint / MODEL)
        set_model_state_dict(model, state)
        return
    is_quantized = getattr(getattr(model, "base_lm", None), "is_quantized", False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = trained if is_quantized else set(without_tied(model, model.state_dict()))
    for file in checkpoint.glob("*.safetensors"):
        state = {name: value for name, value in load_file(file).items() if not is_quantized or name in trained}
        model.load_state_dict(state, strict=False)
        missing = missing - state.keys()
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks {len(missing)} of the model's weights, first {min(missing)}: move it away, and "
            "--resume continues from the checkpoint before"
        )


def save_optimizer_shards(model: nn.Module, optimizer: Any, scheduler: Any, checkpoint: Path) -> None:
    """Write this process's shards of the optimizer; the first one writes its settings and the scheduler.

    Args:
        model, optimizer: as Accelerate has prepared them.
        scheduler: of the learning rate.
        checkpoint: gets the shards; every process must call it.
    """
    tensors, settings = _apart(get_optimizer_state_dict(model, optimizer.optimizer, options=FLAT))
    _save(tensors, checkpoint / OPTIMIZER_SHARDS)
    if torch.distributed.get_rank() == 0:
        (checkpoint / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        torch.save(scheduler.state_dict(), checkpoint / SCHEDULER)


def load_optimizer(model: nn.Module, optimizer: Any, scheduler: Any | None, checkpoint: str | Path) -> None:
    """Load the optimizer, and the scheduler if one is given.

    They come from shards, see `save_optimizer_shards`, or from the files that transformers writes.

    What is not sharded is read on the CPU: transformers 5.17 reads it where the model is, and torch knows no `cpu:0`.
    """
    checkpoint = Path(checkpoint)
    if (checkpoint / OPTIMIZER_SHARDS).is_dir():
        tensors, settings = _apart(get_optimizer_state_dict(model, optimizer.optimizer, options=FLAT))
        _load(tensors, checkpoint / OPTIMIZER_SHARDS)
        stored = json.loads((checkpoint / SETTINGS).read_text())
        settings |= {name: _like(settings[name], value) for name, value in stored.items() if name in settings}
        set_optimizer_state_dict(model, optimizer.optimizer, tensors | settings, options=FLAT)
    else:
        optimizer.load_state_dict(torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True))
    if scheduler is not None:
        scheduler.load_state_dict(torch.load(checkpoint / SCHEDULER, map_location="cpu", weights_only=True))


def _apart(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}


def _like(ours: Any, stored: Any) -> Any:
    return tuple(stored) if isinstance(ours, tuple) else stored


def _save(state: dict[str, Any], folder: Path) -> None:
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    distributed_checkpoint.save(state, storage_writer=writer)


def _load(state: dict[str, Any], folder: Path) -> None:
    distributed_checkpoint.load(state, storage_reader=HuggingFaceStorageReader(str(folder)))
