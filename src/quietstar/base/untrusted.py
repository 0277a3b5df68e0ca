"""Checks of models from untrusted sources: limits on configs and weights, and one-line messages for load failures."""

import json
import math
import pickle
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import find_adapter_config_file

from quietstar.errors import (
    CheckpointError,
    QuietStarError,
    SettingsError,
    UnsupportedModelError,
    did_you_mean,
    first_line,
    reason,
    shown,
)

ADVICE = "give a folder with config.json and weights, or the name of a model on a hub that can be reached"
WEIGHTS = (".safetensors", ".bin")

MOST = 1024
"""most layers, experts or labels that a config may ask for: each is a Python object, even without its weights"""
COUNTS = re.compile(r"(.*_)?(layers?|experts|blocks|labels)")
IMPLEMENTATIONS = frozenset(
    f"{begin}{kind}_implementation{end}"
    for begin in ("", "_")
    for kind in ("attn", "experts")
    for end in ("", "_internal")
)
"""fields that choose the implementation of attention and experts; a value with a slash names a code repository"""
FROM_ELSEWHERE = frozenset({"auto_map", "_auto_class", "transformers_weights"})
"""fields of a config that point at code and other files"""
DENSEST = 8
"""most weights that a byte of a file can hold"""
SLACK = 2**24
"""weights that a model may have beyond those in its files; so few do no harm"""


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Turn whatever the libraries raise while loading a model into a one-line error of this package."""
    try:
        yield
    except QuietStarError:
        raise
    except (OSError, pickle.UnpicklingError, SafetensorError) as error:
        what = "cannot load a model from {}: {}" if Path(name).exists() else "there is no model {} here: {}"
        raise CheckpointError(f"{what.format(repr(str(name)), near(name) or ADVICE)} ({first_line(error)})") from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{str(name)!r} contains code, which runs only with --trust_remote_code; review it first"
            ) from error
        if "Unrecognized" in str(error) or "model type" in str(error):
            raise UnsupportedModelError(
                f"{str(name)!r} is not a decoder-only language model that transformers knows: {first_line(error)}"
            ) from error
        raise CheckpointError(
            f"cannot load a model from {str(name)!r} ({reason(error)}); give a folder whose config.json and weights "
            "belong together"
        ) from error


def near(name: str | Path, others: Iterable[str] = ()) -> str:
    """Return a question for a folder beside the one that is named, or for another name, if one is alike."""
    beside, folders = Path(name).parent, list[str]()
    with suppress(OSError):
        folders += [str(each) for each in beside.iterdir() if each.is_dir()]
    return "" if str(name) in folders else did_you_mean(str(name), [*others, *folders]).removeprefix("; ")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    try:
        return (is_whole(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:
        return False


def check_fields(fields: Mapping[str, Any], where: str) -> None:
    """Check the fields of a config and of the configs nested in it; `where` is its name in messages.

    Raises:
        SettingsError: a field asks for more parts than any model has, or names code of another repository, which
            transformers would fetch and run, or a nested config points at code. (Code that the outer config points at
            runs only with trust_remote_code.)
    """
    outer, *nested = _mappings(fields)
    for name in chain.from_iterable(nested):
        if name in FROM_ELSEWHERE:
            raise SettingsError(
                f"{where} has {name} in a nested config, which points at code; remove it, or review that code and add "
                "--trust_remote_code"
            )
    for name, value in chain.from_iterable(part.items() for part in (outer, *nested)):
        if COUNTS.fullmatch(str(name)) and isinstance(value, int) and value > MOST:
            raise SettingsError(f"{where} has {name} {shown(value)}; give at most {MOST}")
        if str(name) in IMPLEMENTATIONS and "/" in str(value):
            raise SettingsError(
                f"{where} has {name} {shown(value)}, code of another repository; remove it, and ask for it when you "
                "load the model"
            )


def without_pointers(fields: Any) -> Any:
    """Return the fields of a config, nested ones included, without those that point at code and other files."""
    if isinstance(fields, Mapping):
        return {name: without_pointers(each) for name, each in fields.items() if name not in FROM_ELSEWHERE}
    return [without_pointers(each) for each in fields] if isinstance(fields, list) else fields


def check_config(name: str | Path, **hub: Any) -> None:
    """Check the config of a plain model, a folder or hub name, if it can be read.

    Raises:
        CheckpointError: a folder has no config.
        SettingsError: as `check_fields`.
    """
    check_there(name, hub.get("subfolder", ""))
    with suppress(OSError):  # loading it will report what is wrong
        check_fields(PreTrainedConfig.get_config_dict(str(name), **hub)[0], "config.json")


def check_there(name: str | Path, subfolder: str = "") -> None:
    """Raise CheckpointError if a folder has no config; transformers would use a default one."""
    folder = Path(name, subfolder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if checkpoints := [str(file.parent) for file in folder.glob("checkpoint-*/complete.json")]:
            latest = max(checkpoints, key=lambda name: (len(name), name))
            raise CheckpointError(
                f"folder {str(folder)!r} is of a run that has not ended; give its checkpoint {latest!r}, or end it by "
                "quietstar train --resume"
            )
        raise CheckpointError(f"folder {str(folder)!r} has no config.json: {ADVICE}")


def check_alone(name: str | Path, **hub: Any) -> None:
    """Raise CheckpointError if PEFT adapters lie next to a model; transformers would load them into it."""
    with suppress(OSError):
        if find_adapter_config_file(str(name), **hub) is not None:
            raise CheckpointError(
                f"{str(name)!r} has adapters next to the model (adapter_config.json), which would be loaded with it; "
                "merge them with PEFT's merge_and_unload, or remove that file"
            )


def check_folder(folder: Path, skeleton: Callable[[], nn.Module]) -> None:
    """Compare the weights in a folder with the model that its config describes, before allocating memory for it.

    `skeleton` builds the model; it is called on the meta device.

    Raises:
        CheckpointError: an index lists files that are not in the folder, or the weights are far too few.
    """
    for index in sorted(folder.glob("*.index.json")):
        read_index(index)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)
    check_size(str(folder), n_bytes, skeleton)


def check_size(name: str, n_bytes: int, skeleton: Callable[[], nn.Module]) -> None:
    """Compare the bytes of weight files with the model that a config describes, before allocating memory for it.

    `skeleton` builds the model; it is called on the meta device.

    Raises:
        CheckpointError: the weights are far too few.
    """
    if is_deepspeed_zero3_enabled():  # ZeRO-3 replaces how modules are built
        return
    with torch.device("meta"):
        model = skeleton()
    n_weights = sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))
    if n_weights > SLACK + DENSEST * n_bytes:
        raise CheckpointError(
            f"{name} has {n_bytes} bytes of weights, but its config describes {n_weights} weights; give a model whose "
            "config and weights belong together"
        )


def check_complete(name: str | Path, missing: Collection[str]) -> None:
    """Raise CheckpointError if weights of a thinking model, by their names, are missing from its checkpoint."""
    if missing and all(weight.startswith("end_head.") for weight in missing):
        raise CheckpointError(
            f"{name} was saved by a model without learn_to_end, which is chosen when a model is given thoughts; leave "
            "learn_to_end out, or start from a base model"
        )
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} of the model's weights, first {min(missing)}: give a folder that "
            "save_pretrained wrote completely, or from_base for a plain model"
        )


def read_index(index: Path) -> dict[str, str]:
    """Return the name of the weight file of each tensor, from the index of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or lists files outside its folder.
    """
    try:
        files = json.loads(index.read_bytes())["weight_map"]
        for tensor, name in files.items():
            if not isinstance(name, str) or not name.endswith(WEIGHTS) or re.search(r"[/\\\0]", name):
                raise ValueError(f"{shown(tensor)} is in {shown(name)}, which is not a file of this folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is not an index of weights ({reason(error)}); give a folder that save_pretrained wrote"
        ) from error
    return files


def _mappings(fields: Any) -> list[Mapping[str, Any]]:
    """Return a mapping, if it is one, and all mappings nested in it."""
    found, left = [], [fields]
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            found.append(each)
        if isinstance(each, Mapping | list | tuple):
            left.extend(each.values() if isinstance(each, Mapping) else each)
    return found
