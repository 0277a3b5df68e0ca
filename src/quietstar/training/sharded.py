"""Checkpoints of models that are sharded over processes: each writes its shards, as safetensors, none are gathered.

Model and optimizer go through torch's distributed checkpoints, whose other format, pickles, could run code.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors import safe_open
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
from transformers import Trainer

from quietstar.errors import CheckpointError, SettingsError
from quietstar.interop.shards import MODEL, without_tied

OPTIMIZER = "optimizer-shards"
SETTINGS = "optimizer.json"
"""what an optimizer has besides tensors"""
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_model_shards(model: nn.Module, checkpoint: Path) -> None:
    """Write this process's shards of the model; every process must call it."""
    _save(without_tied(model, get_model_state_dict(model)), checkpoint / MODEL)


def load_model_shards(model: nn.Module, checkpoint: Path) -> None:
    """Read this process's shards of the model, of any number of processes; every process must call it."""
    state = get_model_state_dict(model)
    _load(without_tied(model, state), checkpoint / MODEL)
    set_model_state_dict(model, state)


def save_optimizer_shards(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, *, first: bool) -> None:
    """Write this process's shards of the optimizer; the first process writes its settings, too."""
    tensors, settings = _apart(get_optimizer_state_dict(model, optimizer, options=FLAT))
    _save(tensors, checkpoint / OPTIMIZER)
    if first:
        (checkpoint / SETTINGS).write_text(json.dumps(settings))


def load_optimizer_shards(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Read this process's shards of the optimizer, and its settings; every process must call it."""
    tensors, settings = _apart(get_optimizer_state_dict(model, optimizer, options=FLAT))
    _load(tensors, checkpoint / OPTIMIZER)
    stored = json.loads((checkpoint / SETTINGS).read_text())
    settings |= {name: _like(settings[name], value) for name, value in stored.items() if name in settings}
    set_optimizer_state_dict(model, optimizer, tensors | settings, options=FLAT)


def refuse_missing(names: Iterable[str], checkpoint: Path) -> None:
    """Raise CheckpointError where a checkpoint lacks a weight: transformers would go on with a fresh one."""
    found: set[str] = set()
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found.update(opened.keys())
    if missing := sorted(set(names) - found):
        raise CheckpointError(
            f"{checkpoint} lacks {len(missing)} of the model's weights, first {missing[0]}: move it away, and --resume "
            "goes on from the one before"
        )


class ShardedTrainer(Trainer):
    """transformers' Trainer, with checkpoints of shards where FSDP2 shards the model.

    Raises:
        SettingsError: layers are to be checkpointed by FSDP, which does not know of their caches.
    """

    aside: Path | None = None
    """where a checkpoint is being written, None where none is"""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.activation_checkpointing:
            raise SettingsError(
                "fsdp_activation_checkpointing is on, which would run layers a second time over caches that they have "
                "written to; switch it off, and give --gradient_checkpointing"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, gathered from its shards where it is sharded (a checkpoint keeps the shards)."""
        folder = Path(output_dir or str(self.args.output_dir))
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
        elif self.aside is None:
            self._save(str(folder), state_dict=self.accelerator.get_state_dict(self.model))
        else:
            save_model_shards(self.model, folder)
            if self.args.should_save:
                self.model.config.save_pretrained(folder)
                if self.model.can_generate():
                    self.model.generation_config.save_pretrained(folder)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_optimizer_shards(
            self.model, self.optimizer.optimizer, Path(output_dir), first=self.is_world_process_zero()
        )
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            load_model_shards(model or self.model, Path(resume_from_checkpoint))
        elif self._is_quantized:
            self._load_what_trains(Path(resume_from_checkpoint))
        else:
            refuse_missing(without_tied(self.model, self.model.state_dict()), Path(resume_from_checkpoint))
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @property
    def _is_quantized(self) -> bool:
        return bool(getattr(getattr(self.model, "base_lm", None), "is_quantized", False))

    def _load_what_trains(self, checkpoint: Path) -> None:
        """Of a model whose frozen weights are packed, which are as they were, and may be packed in another way."""
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        refuse_missing(trained, checkpoint)
        for file in checkpoint.glob("*.safetensors"):
            state = load_file(file)
            self.model.load_state_dict({name: state[name] for name in trained & state.keys()}, strict=False)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer_shards(self.model, self.optimizer.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))


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
