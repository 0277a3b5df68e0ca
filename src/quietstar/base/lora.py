"""Low-rank adapters in the base model, through PEFT: the mixing head and thought embeddings train beside them.

There are two kinds. Adapters of `lora` act in every pass. Those of `branch_adapters` act in branches alone: the base
pass runs without them, so that they cannot change what is predicted without thoughts.
"""

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from quietstar.base.untrusted import is_number, is_whole
from quietstar.errors import SettingsError, need, shown

EVERYWHERE, BRANCH = "default", "branch"
"""names of the two kinds of adapters in PEFT's layers"""


@dataclass(frozen=True, slots=True)
class SettingType:
    """What the value of a setting may be."""

    name: str
    """in an error message"""
    holds: Callable[[Any], bool]


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w{1,40}", value) is not None


def _is_names(value: Any) -> bool:
    # PEFT treats a string as a pattern, and some patterns search forever; "all-linear" has a meaning of its own
    names = isinstance(value, list | tuple | set) and all(isinstance(name, str) for name in value)
    return names or value == "all-linear"


NUMBER = SettingType("a number", is_number)
NAMES = SettingType("a list of modules' names", _is_names)
WORD = SettingType("a word", _is_word)
SWITCH = SettingType("true or false", _is_switch)
LORA = {
    "r": SettingType("a whole number", is_whole),
    "lora_alpha": NUMBER,
    "lora_dropout": NUMBER,
    "target_modules": NAMES,
    "exclude_modules": NAMES,
    "modules_to_save": NAMES,
    "layers_to_transform": SettingType(
        "a list of whole numbers", lambda value: isinstance(value, list | tuple | set) and all(map(is_whole, value))
    ),
    "bias": WORD,
    "task_type": WORD,
    "init_lora_weights": SettingType("true, false or a word", lambda value: _is_switch(value) or _is_word(value)),
    "use_rslora": SWITCH,
    "use_dora": SWITCH,
    "lora_bias": SWITCH,
    "fan_in_fan_out": SWITCH,
}
"""settings of adapters; PEFT has others, which name code to import or patterns to search for"""


def check_adapters(which: str, settings: Any) -> None:
    """Raise SettingsError if the settings of adapters are not among `LORA`, or not of its types."""
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{which} is {shown(settings)}; give settings such as {{'r': 16}}")
    for name, value in settings.items():
        if name not in LORA:
            raise SettingsError(f"{which} has {shown(name)}, which is not a setting; choose from {', '.join(LORA)}")
        if value is not None and not LORA[name].holds(value):
            raise SettingsError(f"{which} has {name} {shown(value)}; give {LORA[name].name}")


def add_lora(base_lm: PreTrainedModel, settings: dict[str, Any]) -> dict[str, Any]:
    """Put low-rank adapters into a base model, in place, and freeze everything else in it.

    Args:
        base_lm: the base model; its modules keep their names.
        settings: as `peft.LoraConfig` takes them; `target_modules` defaults to all linear layers but the head.

    Returns:
        The settings with all target modules listed, to be stored beside the weights.

    Raises:
        MissingExtraError: PEFT is not installed.
        SettingsError: PEFT refuses the settings, or they ask for full modules beside the adapters, or for adapters on
            a matrix that is both embeddings and LM head.
    """
    tables = base_lm.get_input_embeddings(), base_lm.get_output_embeddings()
    tied = tables[0].weight is tables[1].weight
    settings = _inject(base_lm, settings, EVERYWHERE)
    if tied and (base_lm.get_input_embeddings(), base_lm.get_output_embeddings()) != tables:
        merge_lora(base_lm)  # fresh adapters add nothing
        raise SettingsError(
            f"lora would adapt embeddings or LM head of a {base_lm.config.model_type}, which are one matrix and "
            "would become two; leave them out of target_modules"
        )
    train_adapters_only(base_lm)
    return settings


def add_branch_adapters(base_lm: PreTrainedModel, settings: dict[str, Any]) -> dict[str, Any]:
    """Put low-rank adapters into a base model, in place, that are off until `in_branches` turns them on.

    It does not change what trains in the base model. Arguments, return value and errors are those of `add_lora`.
    """
    tables = base_lm.get_input_embeddings(), base_lm.get_output_embeddings()
    targets = settings.get("target_modules") or []
    if shared := [name for name, module in base_lm.named_modules() if module in tables and _is_target(name, targets)]:
        raise SettingsError(
            f"branch_adapters would adapt {shared[0]}, which text and branches share; leave it out of target_modules"
        )
    settings = _inject(base_lm, settings, BRANCH)
    for layer in branch_layers(base_lm):
        layer._active_adapter = [EVERYWHERE] if EVERYWHERE in layer.scaling else []
    return settings


def _is_target(name: str, targets: str | Collection[str]) -> bool:
    return not isinstance(targets, str) and any(name == each or name.endswith(f".{each}") for each in targets)


def _inject(base_lm: PreTrainedModel, settings: dict[str, Any], name: str) -> dict[str, Any]:
    peft = need("peft", "lora", "low-rank adapters")
    if settings.get("modules_to_save"):
        raise SettingsError(
            "settings of adapters have modules_to_save; leave it out: the mixing head and thought embeddings train in "
            "any case"
        )
    trained = {id(parameter): parameter.requires_grad for parameter in base_lm.parameters()}
    try:
        config = peft.LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # there are two kinds of adapters
            peft.inject_adapter_in_model(config, base_lm, adapter_name=name)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"these LoRA settings do not fit the model: {error}") from error
    for part, module in base_lm.named_modules():
        if ".lora_" in part:
            module._is_hf_initialized = True  # or transformers initialises them again, as any linear layer
    for parameter in base_lm.parameters():
        parameter.requires_grad = trained.get(id(parameter), True)
        if id(parameter) not in trained:  # a step of 1e-4 is lost in bfloat16
            parameter.data = parameter.data.float()
    targets = config.target_modules
    return {**settings, "target_modules": targets if isinstance(targets, str) else sorted(targets)}


def branch_layers(base_lm: PreTrainedModel) -> list[Any]:
    """Return PEFT's layers that have adapters of branches.

    Every forward pass calls this, so PEFT's own record is read first: walking through all modules is slow.
    """
    if BRANCH not in getattr(base_lm, "peft_config", {}):
        return []
    return [module for module in base_lm.modules() if BRANCH in _adapters(module)]


def _adapters(module: Any) -> dict[str, float]:
    """Return the adapters of a module and their scales; only PEFT's layers have such a dictionary."""
    scaling = getattr(module, "scaling", None)
    return scaling if isinstance(scaling, dict) else {}


@contextmanager
def in_branches(layers: list[Any]) -> Iterator[None]:
    """Turn the adapters of branches on in these layers.

    PEFT's own `set_adapter` would also change which parameters train, in the middle of a forward pass.
    """
    before = [layer._active_adapter for layer in layers]
    for layer, active in zip(layers, before, strict=True):
        layer._active_adapter = [*active, BRANCH]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def train_adapters_only(base_lm: PreTrainedModel) -> None:
    """Freeze everything in a base model but its adapters."""
    for name, parameter in base_lm.named_parameters():
        parameter.requires_grad = ".lora_" in name


def freeze_base(base_lm: PreTrainedModel) -> None:
    """Freeze everything in a base model but the adapters of branches: its own predictions do not change."""
    for name, parameter in base_lm.named_parameters():
        parameter.requires_grad = ".lora_" in name and f".{BRANCH}" in name


@contextmanager
def without_adapters(base_lm: PreTrainedModel) -> Iterator[None]:
    """Turn all adapters off within a block: the base model predicts as it did before they were trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [each for each in base_lm.modules() if isinstance(each, BaseTunerLayer) and not each.disable_adapters]

    def switch(on: bool) -> None:
        trains = [(parameter, parameter.requires_grad) for parameter in base_lm.parameters()]
        for layer in layers:
            layer.enable_adapters(on)
        for parameter, was in trains:  # PEFT freezes or unfreezes adapters along with it
            parameter.requires_grad = was

    switch(False)
    try:
        yield
    finally:
        switch(True)


def merge_lora(base_lm: PreTrainedModel) -> None:
    """Merge the adapters of every pass into the weights that they adapt, in place, and remove them.

    The adapters of branches stay.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [
        (name, module)
        for name, module in base_lm.named_modules()
        if isinstance(module, BaseTunerLayer) and EVERYWHERE in _adapters(module)
    ]
    for name, module in adapted:
        module.merge(safe_merge=True, adapter_names=[EVERYWHERE])
        if BRANCH in _adapters(module):
            module.merged_adapters.clear()  # PEFT must not unmerge them
            module._active_adapter = []
            module.delete_adapter(EVERYWHERE)
        else:
            _take_out(base_lm, name)
    for parameter in base_lm.parameters():
        parameter.requires_grad = True


def drop_branch_adapters(base_lm: PreTrainedModel) -> None:
    """Remove the adapters of branches from a base model, in place; its own predictions do not change."""
    adapted = [(name, module) for name, module in base_lm.named_modules() if BRANCH in _adapters(module)]
    for name, module in adapted:
        if EVERYWHERE in _adapters(module):
            module.delete_adapter(BRANCH)
        else:
            _take_out(base_lm, name)


def _take_out(base_lm: PreTrainedModel, name: str) -> None:
    """Replace a PEFT layer with the layer that it wraps."""
    base_lm.set_submodule(name, base_lm.get_submodule(name).get_base_layer())
