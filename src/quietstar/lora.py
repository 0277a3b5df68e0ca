"""Low-rank adapters in the base model, through PEFT: the mixing head and thought embeddings train beside them."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from quietstar.errors import SettingsError
from quietstar.extras import need
from quietstar.precision import train_in_float32


def add_lora(base_lm: PreTrainedModel, settings: dict[str, Any]) -> dict[str, Any]:
    """Put low-rank adapters into a base model, in place, and freeze everything else in it.

    Args:
        base_lm: the base model; its modules keep their names.
        settings: as `peft.LoraConfig` takes them; `target_modules` defaults to all linear layers but the head.

    Returns:
        The settings with the target modules spelled out, to be stored beside the weights.

    Raises:
        MissingExtraError: PEFT is not installed.
        SettingsError: PEFT refuses the settings, or they ask for full modules beside the adapters, or for adapters on
            one matrix that is embeddings and LM head at once.
    """
    peft = need("peft", "lora", "low-rank adapters")
    if settings.get("modules_to_save"):
        raise SettingsError(
            "lora has modules_to_save; leave it out: the mixing head and thought embeddings train in any case"
        )
    tables = base_lm.get_input_embeddings(), base_lm.get_output_embeddings()
    tied = tables[0].weight is tables[1].weight
    try:
        config = peft.LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
        peft.inject_adapter_in_model(config, base_lm)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"these LoRA settings do not fit the model: {error}") from error
    if tied and (base_lm.get_input_embeddings(), base_lm.get_output_embeddings()) != tables:
        merge_lora(base_lm)  # fresh adapters add nothing
        raise SettingsError(
            f"lora would adapt embeddings or LM head of a {base_lm.config.model_type}, which are one matrix and "
            "would become two; leave them out of target_modules"
        )
    for name, module in base_lm.named_modules():
        if ".lora_" in name:
            module._is_hf_initialized = True  # or transformers draws them anew, as any linear layer
    train_adapters_only(base_lm)
    train_in_float32(base_lm)
    targets = config.target_modules
    return {**settings, "target_modules": targets if isinstance(targets, str) else sorted(targets)}


def train_adapters_only(base_lm: PreTrainedModel) -> None:
    """Freeze everything in a base model but its adapters."""
    for name, parameter in base_lm.named_parameters():
        parameter.requires_grad = ".lora_" in name


def merge_lora(base_lm: PreTrainedModel) -> None:
    """Add the adapters to the weights that they adapt, in place, and take them out of the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, module) for name, module in base_lm.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        base_layer: nn.Module = module.get_base_layer()
        setattr(base_lm.get_submodule(parent), child, base_layer)
    for parameter in base_lm.parameters():
        parameter.requires_grad = True
