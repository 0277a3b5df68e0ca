"""The config of a base model, from the fields of a file."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from quietstar.base.untrusted import check_fields, without_pointers
from quietstar.errors import QuietStarError, SettingsError, reason, shown

OURS = "quietstar"
"""model type of a thinking model"""
HOW_LOADED = frozenset({"_name_or_path", "_model_name_or_path", "gguf_file"})
"""fields of a base model's config that say where its weights came from and do not describe the model"""


def base_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """Build the config of a base model from its fields, without running code that they point to."""
    family = fields.pop("model_type", None)
    if family is None:
        raise SettingsError(f"base_config has no model_type (it has {shown(sorted(map(str, fields)))}); add it")
    if not isinstance(family, str) or family == OURS:
        raise SettingsError(f"base_config has model_type {shown(family)}; give that of an ordinary language model")
    try:
        fields = of_the_model(plain_fields(fields, "base_config"))
        check_fields(fields, "base_config")
        return AutoConfig.for_model(family, **fields)
    except QuietStarError:
        raise
    except Exception as error:
        raise SettingsError(
            f"base_config is not a valid config for model_type {shown(family)} ({reason(error)}); give "
            "the fields that transformers knows"
        ) from error


def of_the_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a base model's config without those that say how its weights were loaded.

    Weights of a GGUF file are unpacked as they are read, whatever its quantization_config says.
    """
    fields = {name: value for name, value in fields.items() if name not in HOW_LOADED}
    if packing_of(fields.get("quantization_config")) == "gguf":
        del fields["quantization_config"]
    return fields


def packing_of(quantization_config: Any) -> str | None:
    """Return the method by which weights are packed; None if they are not."""
    if isinstance(quantization_config, Mapping):
        method = quantization_config.get("quant_method")
    else:
        method = getattr(quantization_config, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def plain_fields(
    fields: dict[str, Any], where: str, config_class: type[PreTrainedConfig] = PreTrainedConfig
) -> dict[str, Any]:
    """Return the fields of a config without those that point elsewhere, at any depth.

    Raises:
        SettingsError: a field would replace a method.
    """
    for name in fields:
        if callable(getattr(config_class, name, None)):
            raise SettingsError(f"{where} has {name!r}, which is a method, not a setting; remove it")
    return without_pointers(fields)
