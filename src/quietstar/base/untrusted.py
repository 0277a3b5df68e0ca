"""Models from elsewhere: what their configs and weights may ask for, and what is wrong with them in one line."""

import json
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
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
    first_line,
    reason,
    shown,
)

ADVICE = "give a folder with config.json and weights, or the name of a model on a hub that can be reached"
WEIGHTS = (".safetensors", ".bin")

MOST = 1024
"""layers, experts or labels that a config may ask for: each is an object of its own, even without its weights"""
COUNTS = re.compile(r"(.*_)?(layers?|experts|blocks|labels)")
IMPLEMENTATIONS = frozenset(
    f"{begin}{kind}_implementation{end}"
    for begin in ("", "_")
    for kind in ("attn", "experts")
    for end in ("", "_internal")
)
"""fields that say how attention and experts are computed; with a slash they name a repository of code"""
FROM_ELSEWHERE = frozenset({"auto_map", "_auto_class", "transformers_weights"})
"""fields of a config that point at code and files beside it"""
DENSEST = 8
"""weights that a byte of a file may hold"""
SLACK = 2**24
"""weights that a model may have beside those in its files: whatever they are, they do no harm"""


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Say in one line of our own errors why a model cannot be loaded, whatever the libraries below raise."""
    try:
        yield
    except QuietStarError:
        raise
    except (OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"no model could be loaded from {str(name)!r}: {ADVICE} ({first_line(error)})") from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{str(name)!r} brings code of its own, which is run only with --trust_remote_code; look at it first"
            ) from error
        if "Unrecognized" in str(error) or "model type" in str(error):
            raise UnsupportedModelError(
                f"{str(name)!r} is no decoder-only language model that transformers knows: {first_line(error)}"
            ) from error
        raise CheckpointError(
            f"no model could be loaded from {str(name)!r} ({reason(error)}); give a folder "
            "whose config.json and weights belong together"
        ) from error


def is_whole(value: Any) -> bool:
    """Whether it is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number that can be reckoned with."""
    try:
        return (is_whole(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:
        return False


def check_fields(fields: Mapping[str, Any], where: str) -> None:
    """Look through the fields of a config, and those of the configs in it.

    Args:
        fields: as they stand in the file.
        where: what they are, for the message.

    Raises:
        SettingsError: a field asks for more parts than any model has, or names code of another repository, which
            transformers would fetch and run; or a config within this one points at code. (What this one points at
            itself is heeded only where the user says so.)
    """
    whole, *within = _mappings(fields)
    for name in chain.from_iterable(within):
        if name in FROM_ELSEWHERE:
            raise SettingsError(
                f"{where} has {name} in a config within it, which points at code of its own; take it out, or look at "
                "that code and add --trust_remote_code"
            )
    for name, value in chain.from_iterable(part.items() for part in (whole, *within)):
        if COUNTS.fullmatch(str(name)) and isinstance(value, int) and value > MOST:
            raise SettingsError(f"{where} has {name} {shown(value)}; give at most {MOST}")
        if str(name) in IMPLEMENTATIONS and "/" in str(value):
            raise SettingsError(
                f"{where} has {name} {shown(value)}, code of another repository; take it out, and ask for it when you "
                "load the model"
            )


def without_pointers(fields: Any) -> Any:
    """The same fields, of configs at any depth, but for those that point at code and files beside a config."""
    if isinstance(fields, Mapping):
        return {name: without_pointers(each) for name, each in fields.items() if name not in FROM_ELSEWHERE}
    return [without_pointers(each) for each in fields] if isinstance(fields, list) else fields


def check_config(name: str | Path, **hub: Any) -> None:
    """Look through the config of a plain model, where it can be read.

    Args:
        name: hub name or folder.
        hub: subfolder, revision, cache_dir, token, as `from_pretrained` takes them.

    Raises:
        CheckpointError: a folder has no config.
        SettingsError: as `check_fields`.
    """
    check_there(name, hub.get("subfolder", ""))
    with suppress(OSError):  # whoever loads it will say what is wrong
        check_fields(PreTrainedConfig.get_config_dict(str(name), **hub)[0], "config.json")


def check_there(name: str | Path, subfolder: str = "") -> None:
    """Raise CheckpointError where a folder has no config, which transformers would take for one of defaults."""
    folder = Path(name, subfolder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"folder {str(folder)!r} holds no config.json: {ADVICE}")


def check_alone(name: str | Path, **hub: Any) -> None:
    """Raise CheckpointError where adapters of PEFT lie beside a model, which transformers would put into it."""
    with suppress(OSError):
        if find_adapter_config_file(str(name), **hub) is not None:
            raise CheckpointError(
                f"{str(name)!r} has adapters beside the model (adapter_config.json), which would change it unasked; "
                "merge them into it by PEFT's merge_and_unload, or take that file away"
            )


def check_folder(folder: Path, skeleton: Callable[[], nn.Module]) -> None:
    """Compare weights in a folder with the model that its config describes, before memory is taken for it.

    Args:
        folder: of a model.
        skeleton: makes the model; it is called on the meta device.

    Raises:
        CheckpointError: an index lists files that are not in the folder, or the weights are far too few.
    """
    for index in sorted(folder.glob("*.index.json")):
        shards_of(index)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)
    check_size(str(folder), n_bytes, skeleton)


def check_size(name: str, n_bytes: int, skeleton: Callable[[], nn.Module]) -> None:
    """Compare the size of weights' files with the model that a config describes, before memory is taken for it.

    Args:
        name: of the model, for the message.
        n_bytes: of the files.
        skeleton: makes the model; it is called on the meta device.

    Raises:
        CheckpointError: the weights are far too few.
    """
    if is_deepspeed_zero3_enabled():  # which makes models in a way of its own
        return
    with torch.device("meta"):
        model = skeleton()
    n_weights = sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))
    if n_weights > SLACK + DENSEST * n_bytes:
        raise CheckpointError(
            f"{name} has {n_bytes} bytes of weights, and its config describes a model of {n_weights}; give one "
            "whose config and weights belong together"
        )


def shards_of(index: Path) -> dict[str, str]:
    """The file that each tensor is in, by the index of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or lists files outside its folder.
    """
    try:
        shards = json.loads(index.read_bytes())["weight_map"]
        for tensor, name in shards.items():
            if not isinstance(name, str) or not name.endswith(WEIGHTS) or re.search(r"[/\\\0]", name):
                raise ValueError(f"{shown(tensor)} is in {shown(name)}, no file of this folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is no index of weights ({reason(error)}); give a folder that save_pretrained wrote"
        ) from error
    return shards


def _mappings(fields: Any) -> list[Mapping[str, Any]]:
    """A mapping and all that are in it."""
    found, left = [], [fields]
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            found.append(each)
        if isinstance(each, Mapping | list | tuple):
            left.extend(each.values() if isinstance(each, Mapping) else each)
    return found
