"""What a thinking model is: the settings of the method around the config of an ordinary language model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from quietstar.base.untrusted import check_fields, check_there, is_number, is_whole, loading, without_pointers
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, reason, shown
from quietstar.learn import PolicyWeight

INNER_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")
HOW_LOADED = frozenset({"_name_or_path", "_model_name_or_path", "gguf_file"})
"""fields of a base model's config that say where its weights came from, and nothing of the model"""

NAMES = "a list of modules' names"
LORA = {
    "r": "a whole number",
    "lora_alpha": "a number",
    "lora_dropout": "a number",
    "target_modules": NAMES,
    "exclude_modules": NAMES,
    "modules_to_save": NAMES,
    "layers_to_transform": "a list of whole numbers",
    "bias": "a word",
    "task_type": "a word",
    "init_lora_weights": "true, false or a word",
    "use_rslora": "true or false",
    "use_dora": "true or false",
    "lora_bias": "true or false",
    "fan_in_fan_out": "true or false",
}
"""settings of adapters and what each is; PEFT has others, which name code to import or patterns to search for"""


class QuietStarConfig(PreTrainedConfig):
    """Settings of a Quiet-STaR model (arXiv 2403.09629, section 4), beside those of its base model.

    Args:
        base_config: config of the base model, or its dictionary with `model_type`.
        n_ahead: tokens of a thought, start and end included; `n_ahead - 2` of them are sampled.
        n_ahead_talk: true tokens predicted after each thought when a loss is asked for.
        n_passes: thoughts sampled for each position in training.
        thought_temperature: temperature at which thought tokens are drawn in training.
        reinforce_temperature: temperature of the log-probabilities in the policy loss. Another one than thoughts are
            sampled at makes thoughts more (above it) or less certain whatever their rewards.
        policy_weight: weight of the policy loss beside the nll: a number, or `balanced:R`; see
            `quietstar.learn.PolicyWeight`.
        base_loss_weight: share of the base model's own nll in the nll; the rest is the talk loss.
        embedding_scale: start and end are fed as this many times their stored parameter, so that a step of
            Adam moves them that much further.
        initial_thought_text: start and end begin as the embedding of this text's first token.
        suppressed_token_ids: tokens that neither a thought nor `generate` may contain.
        n_tokens: ids from this one on are suppressed, too, as the tokenizer has no tokens for them. None where it has
            one for every row of the vocabulary, or is not known.
        lora: settings of the low-rank adapters in the base model, those of `peft.LoraConfig` that `LORA` lists; None
            where there are none.
        branch_adapters: the same, of adapters that act in branches alone.

    Raises:
        SettingsError: a setting is impossible.
    """

    model_type = "quietstar"
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012  (how transformers declares it)
    has_no_defaults_at_init = True

    base_config: Any = None
    n_ahead: int = 8
    n_ahead_talk: int = 4
    n_passes: int = 2
    thought_temperature: float = 1.0
    reinforce_temperature: float = 1.0
    policy_weight: float | str = "balanced:0.1"
    base_loss_weight: float = 0.5
    embedding_scale: float = 100.0
    initial_thought_text: str = "---"
    suppressed_token_ids: list[int] | None = None
    n_tokens: int | None = None
    lora: dict[str, Any] | None = None
    branch_adapters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.check()
        if isinstance(self.base_config, Mapping):
            self.base_config = _base_config(dict(self.base_config))
        self.suppressed_token_ids = sorted(self.suppressed_token_ids or [])
        kwargs = _fields(kwargs, "config")
        # transformers hands the outer implementations, None at this point, down to inner configs, and an inner
        # model whose attention is None attends without its mask. The inner ones stay what they were.
        inner = {name: getattr(self.base_config, name, None) for name in INNER_IMPLEMENTATIONS}
        super().__post_init__(**kwargs)
        for name, implementation in inner.items():
            if self.base_config is not None and getattr(self, name) is None:
                setattr(self.base_config, name, implementation)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """The config of a folder or hub name; as for every Hugging Face config.

        Raises:
            CheckpointError: there is none that can be read.
            SettingsError: a setting in it is impossible.
        """
        with loading(pretrained_model_name_or_path):
            check_there(pretrained_model_name_or_path, kwargs.get("subfolder", ""))
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From the fields of a file; `kwargs` are the caller's own, which go before them.

        Raises:
            CheckpointError: they are another model's.
            SettingsError: a setting is impossible.
        """
        try:
            own = {name: value for name, value in config_dict.items() if name != "base_config"}
            check_fields(own, "config.json")
            if (family := config_dict.get("model_type", cls.model_type)) != cls.model_type:
                raise CheckpointError(
                    f"config.json has model_type {shown(family)}, which is no thinking model's; from_base gives "
                    "thoughts to a plain model"
                )
            return super().from_dict(config_dict, **kwargs)
        except QuietStarError:
            raise
        except Exception as error:
            raise SettingsError(
                f"these are no settings of a thinking model ({reason(error)}); give a "
                "config.json that save_pretrained wrote"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved: nothing in them says where the base model was loaded from."""
        fields = super().to_dict()
        if isinstance(fields.get("base_config"), Mapping):
            fields["base_config"] = _of_the_model(fields["base_config"])
        return fields

    def check(self) -> None:
        """Raise SettingsError where a setting is impossible."""
        at_least = {"n_ahead": 2, "n_ahead_talk": 1, "n_passes": 1}
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if not is_whole(value) or value < lowest:
                hint = " (start and end of the thought count)" if name == "n_ahead" else ""
                raise SettingsError(f"{name} is {shown(value)}; give a whole number of at least {lowest}{hint}")
        for name in ("reinforce_temperature", "embedding_scale"):
            if not (is_number(value := getattr(self, name)) and value > 0):
                raise SettingsError(f"{name} is {shown(value)}; give a number above 0")
        if not (is_number(value := self.thought_temperature) and value >= 0):
            raise SettingsError(f"thought_temperature is {shown(value)}; give a number of at least 0")
        PolicyWeight.parse(self.policy_weight)
        if not (is_number(self.base_loss_weight) and 0 <= self.base_loss_weight <= 1):
            raise SettingsError(f"base_loss_weight is {shown(self.base_loss_weight)}; give a number from 0 to 1")
        if not isinstance(text := self.initial_thought_text, str) or not text:
            said = "empty" if text == "" else shown(text)
            raise SettingsError(f"initial_thought_text is {said}; give a text such as '---'")
        ids = self.suppressed_token_ids
        if ids is not None and not (isinstance(ids, list | tuple) and all(is_whole(id) and id >= 0 for id in ids)):
            raise SettingsError(f"suppressed_token_ids is {shown(ids)}; give a list of token ids")
        if self.n_tokens is not None and not (is_whole(self.n_tokens) and self.n_tokens >= 1):
            raise SettingsError(f"n_tokens is {shown(self.n_tokens)}; give a whole number of at least 1")
        if not isinstance(self.base_config, PreTrainedConfig | Mapping | None):
            raise SettingsError(f"base_config is {shown(self.base_config)}; give a config, or its fields")
        for name in ("lora", "branch_adapters"):
            if getattr(self, name) is not None:
                check_adapters(name, getattr(self, name))

    @property
    def n_thought_tokens(self) -> int:
        """K, the sampled tokens of a thought."""
        return self.n_ahead - 2

    @property
    def suppressed(self) -> list[int]:
        """Token ids that neither a thought nor `generate` may contain, rising."""
        beyond = range(self.vocab_size if self.n_tokens is None else self.n_tokens, self.vocab_size)
        return sorted({*(self.suppressed_token_ids or ()), *beyond})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The base model's text config: caches and generation are made for the base model's layers."""
        if self.base_config is None:
            return self
        return self.base_config.get_text_config(decoder=decoder, encoder=encoder)

    @property
    def vocab_size(self) -> int:
        """V, the base model's vocabulary."""
        return self.get_text_config().vocab_size

    @property
    def hidden_size(self) -> int:
        """D, the base model's hidden size."""
        return self.get_text_config().hidden_size


def check_adapters(which: str, settings: Any) -> None:
    """Raise SettingsError where settings of adapters are not among `LORA`, or not what it says."""
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{which} is {shown(settings)}; give settings such as {{'r': 16}}")
    for name, value in settings.items():
        if name not in LORA:
            raise SettingsError(f"{which} has {shown(name)}, which is no setting here; choose from {', '.join(LORA)}")
        if value is not None and not _is_kind(value, LORA[name]):
            raise SettingsError(f"{which} has {name} {shown(value)}; give {LORA[name]}")


def _is_kind(value: Any, kind: str) -> bool:
    """Whether a value of a setting of adapters is what `LORA` says."""
    match kind:
        case "a whole number":
            return is_whole(value)
        case "a number":
            return is_number(value)
        case "true or false":
            return isinstance(value, bool)
        case "true, false or a word":
            return isinstance(value, bool) or _is_word(value)
        case "a word":
            return _is_word(value)
        case "a list of whole numbers":
            return isinstance(value, list | tuple | set) and all(map(is_whole, value))
    # PEFT takes a string for a pattern, and some patterns search for ever; "all-linear" has a meaning of its own
    return value == "all-linear" or (
        isinstance(value, list | tuple | set) and all(isinstance(each, str) for each in value)
    )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w{1,40}", value) is not None


def _base_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """The config of a base model from its fields; code that they point at is not asked for."""
    family = fields.pop("model_type", None)
    if family is None:
        raise SettingsError(f"base_config has no model_type (it has {shown(sorted(map(str, fields)))}); add it")
    if not isinstance(family, str) or family == QuietStarConfig.model_type:
        raise SettingsError(f"base_config has model_type {shown(family)}; give that of an ordinary language model")
    try:
        fields = _of_the_model(_fields(fields, "base_config"))
        check_fields(fields, "base_config")
        return AutoConfig.for_model(family, **fields)
    except QuietStarError:
        raise
    except Exception as error:
        raise SettingsError(
            f"base_config is none of model_type {shown(family)} ({reason(error)}); give "
            "the fields that transformers knows"
        ) from error


def _of_the_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a base model's config without those that say how its weights were loaded.

    Weights of a GGUF file are unpacked as they are read, whatever its quantization_config says.
    """
    fields = {name: value for name, value in fields.items() if name not in HOW_LOADED}
    if packing_of(fields.get("quantization_config")) == "gguf":
        del fields["quantization_config"]
    return fields


def packing_of(quantization_config: Any) -> str | None:
    """The method by which weights are packed; None where they are not."""
    if isinstance(quantization_config, Mapping):
        method = quantization_config.get("quant_method")
    else:
        method = getattr(quantization_config, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def check_unpacked(config: QuietStarConfig, folder: str | Path) -> None:
    """Raise CheckpointError where a thinking model was saved with its base model's weights in 4 or 8 bits."""
    if packing_of(getattr(config.base_config, "quantization_config", None)) == "bitsandbytes":
        raise CheckpointError(
            f"{folder} holds a thinking model whose base model's weights are still packed by bitsandbytes, and is not "
            "loaded; a checkpoint of a run in 4 bits is for --resume, which ends with an ordinary folder: for one of "
            "your own, call base_lm.dequantize() before save_pretrained"
        )


def _fields(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Fields of a config without those that point elsewhere, at any depth.

    Raises:
        SettingsError: a field would stand in a method's place.
    """
    for name in fields:
        if callable(getattr(QuietStarConfig, name, None)):
            raise SettingsError(f"{where} has {name!r}, which is a method and no setting; take it out")
    return without_pointers(fields)
