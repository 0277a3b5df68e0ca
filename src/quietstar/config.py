"""What a thinking model is: the settings of the method around the config of an ordinary language model."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from quietstar.base.configs import OURS, base_config, of_the_model, packing_of, plain_fields
from quietstar.base.lora import check_adapters
from quietstar.base.sources import hub_arguments
from quietstar.base.untrusted import (
    check_alone,
    check_fields,
    check_folder,
    check_there,
    is_number,
    is_whole,
    loading,
)
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, reason, shown
from quietstar.learn import ADVANTAGES, PolicyWeight

MIXING = ("head", "thought")
THOUGHT_SOURCES = ("sampled", "filler", "random", "copy")
INNER_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")


class QuietStarConfig(PreTrainedConfig):
    """Settings of a Quiet-STaR model (arXiv 2403.09629, section 4), beside its base model's; all are passed by name.

    Args:
        base_config: config of the base model, or its dictionary with `model_type`.
        n_ahead: tokens of a thought, start and end included, unless a call asks for others; n_ahead - 2 are sampled.
        n_ahead_talk: true tokens predicted after each thought when a loss is asked for.
        n_passes: thoughts sampled for each position in training.
        mixing: `head` mixes the predictions without and with a thought; `thought` uses the one with it alone.
        thought_source: `sampled`, or a control: `filler`, `random` (tokens) or `copy` (the text's last tokens again).
        filler_text: `filler` thoughts repeat this text's first token.
        filler_token_id: its id; found where the model has a tokenizer.
        thought_temperature: temperature at which thought tokens are sampled in training.
        reinforce_temperature: that of the log-probabilities in the policy loss; above it, thoughts grow more certain.
        learn_to_end: a thought may end early, which is learned with its tokens; n_ahead is then the most that it has.
        length_price: nats that a reward loses for each sampled token of its thought.
        advantage: of a reward r beside the mean of its position's: `positive`, max(0, r - mean); `centered`, r - mean;
            `leave_one_out`, r - the mean of the others; `standardized`, (r - mean) / spread.
        policy_weight: of the policy loss: a number, or `balanced:R`, for a gradient R times as long as the nll's.
        nll_weight: weight of the nll beside it; 0 learns from rewards alone.
        base_loss_weight: share of the base model's own nll in the nll; the rest is the talk loss.
        embedding_scale: start and end are fed as this many times their stored parameter: Adam moves them further.
        initial_thought_text: start and end begin as the embedding of this text's first token.
        suppressed_token_ids: tokens that neither a thought nor `generate` may contain.
        n_tokens: ids from this one on, which the tokenizer does not have, are suppressed, too; None suppresses none.
        lora: settings of the low-rank adapters in the base model, as `peft.LoraConfig` names them: `r`, `lora_alpha`,
            `lora_dropout`, `target_modules` (None: all linear layers but the head), ...; None without adapters.
        branch_adapters: the same, of adapters that act in branches alone.

    Raises:
        SettingsError: a setting is invalid.
    """

    model_type = OURS
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012  (how transformers declares it)
    has_no_defaults_at_init = True

    base_config: Any = None
    n_ahead: int = 8
    n_ahead_talk: int = 4
    n_passes: int = 2
    mixing: str = "head"
    thought_source: str = "sampled"
    filler_text: str = "..."
    filler_token_id: int | None = None
    thought_temperature: float = 1.0
    reinforce_temperature: float = 1.0
    learn_to_end: bool = False
    length_price: float = 0.0
    advantage: str = "positive"
    policy_weight: float | str = "balanced:0.1"
    nll_weight: float = 1.0
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
            self.base_config = base_config(dict(self.base_config))
        self.suppressed_token_ids = sorted(self.suppressed_token_ids or [])
        kwargs = plain_fields(kwargs, "config", QuietStarConfig)
        # transformers copies the outer implementations, None at this point, to inner configs, and an inner model
        # whose attention is None attends without its mask. So the inner ones are restored.
        inner = {name: getattr(self.base_config, name, None) for name in INNER_IMPLEMENTATIONS}
        super().__post_init__(**kwargs)
        for name, implementation in inner.items():
            if self.base_config is not None and getattr(self, name) is None:
                setattr(self.base_config, name, implementation)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load the config of a folder or hub name, as every Hugging Face config does.

        Raises:
            CheckpointError: there is no readable config.
            SettingsError: a setting is invalid.
        """
        with loading(pretrained_model_name_or_path):
            check_there(pretrained_model_name_or_path, kwargs.get("subfolder", ""))
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config from the fields of a file; `kwargs` are the caller's own and override them.

        Raises:
            CheckpointError: the fields are those of another kind of model.
            SettingsError: a setting is invalid.
        """
        try:
            own = {name: value for name, value in config_dict.items() if name != "base_config"}
            check_fields(own, "config.json")
            if (family := config_dict.get("model_type", cls.model_type)) != cls.model_type:
                raise CheckpointError(
                    f"config.json has model_type {shown(family)}, which is not a thinking model's; from_base gives "
                    "thoughts to a plain model"
                )
            return super().from_dict(config_dict, **kwargs)
        except QuietStarError:
            raise
        except Exception as error:
            raise SettingsError(
                f"these are not the settings of a thinking model ({reason(error)}); give a "
                "config.json that save_pretrained wrote"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields to save: they do not say where the base model was loaded from."""
        fields = super().to_dict()
        if isinstance(fields.get("base_config"), Mapping):
            fields["base_config"] = of_the_model(fields["base_config"])
        return fields

    def check(self) -> None:
        """Raise SettingsError if a setting is invalid."""
        at_least = {"n_ahead_talk": 1, "n_passes": 1}
        check_n_ahead(self.n_ahead)
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if not is_whole(value) or value < lowest:
                raise SettingsError(f"{name} is {shown(value)}; give a whole number of at least {lowest}")
        for name in ("reinforce_temperature", "embedding_scale"):
            if not (is_number(value := getattr(self, name)) and value > 0):
                raise SettingsError(f"{name} is {shown(value)}; give a number above 0")
        if not (is_number(value := self.thought_temperature) and value >= 0):
            raise SettingsError(f"thought_temperature is {shown(value)}; give a number of at least 0")
        for name, kinds in {"mixing": MIXING, "thought_source": THOUGHT_SOURCES, "advantage": ADVANTAGES}.items():
            if getattr(self, name) not in tuple(kinds):
                raise SettingsError(f"{name} is {shown(getattr(self, name))}; choose from {', '.join(kinds)}")
        if not isinstance(self.learn_to_end, bool):
            raise SettingsError(f"learn_to_end is {shown(self.learn_to_end)}; give true or false")
        if self.learn_to_end and self.thought_source != "sampled":
            raise SettingsError(f"learn_to_end needs sampled thoughts, not {self.thought_source} ones; leave one out")
        if self.n_passes == 1 and self.advantage in ("leave_one_out", "standardized"):
            raise SettingsError(
                f"advantage is {self.advantage}, which compares the thoughts of a position, and n_passes is 1; give an "
                "n_passes of at least 2"
            )
        for name in ("nll_weight", "length_price"):
            if not (is_number(value := getattr(self, name)) and 0 <= value < math.inf):
                raise SettingsError(f"{name} is {shown(value)}; give a number of at least 0")
        if PolicyWeight.parse(self.policy_weight).is_balanced and self.nll_weight == 0:
            raise SettingsError(
                f"policy_weight is {shown(self.policy_weight)}, relative to the gradient of the nll, and nll_weight is "
                "0; give policy_weight as a number, such as 1"
            )
        if not (is_number(self.base_loss_weight) and 0 <= self.base_loss_weight <= 1):
            raise SettingsError(f"base_loss_weight is {shown(self.base_loss_weight)}; give a number from 0 to 1")
        for name, example in {"initial_thought_text": "---", "filler_text": "..."}.items():
            if not isinstance(text := getattr(self, name), str) or not text:
                said = "empty" if text == "" else shown(text)
                raise SettingsError(f"{name} is {said}; give a text such as {example!r}")
        if self.filler_token_id is not None and not (is_whole(self.filler_token_id) and self.filler_token_id >= 0):
            raise SettingsError(f"filler_token_id is {shown(self.filler_token_id)}; give a token id")
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

    def resolve_n_ahead(self, n_ahead: int | None) -> int:
        """Return the tokens of a thought that was asked for, start and end included; None asks for the config's.

        Raises:
            SettingsError: a thought cannot have that many tokens.
        """
        if n_ahead is None:
            return self.n_ahead
        check_n_ahead(n_ahead)
        return n_ahead

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
        """Return the base model's text config: caches and generation are made for the base model's layers."""
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


def check_n_ahead(n_ahead: Any, name: str = "n_ahead") -> None:
    """Raise SettingsError if a thought cannot have that many tokens."""
    if not is_whole(n_ahead) or n_ahead < 2:
        raise SettingsError(
            f"{name} is {shown(n_ahead)}; give a whole number of at least 2 (start and end of the thought count)"
        )


def room_beside_thought(config: PreTrainedConfig, n_ahead: int | None = None) -> int | None:
    """Return how many tokens of text fit into a model's context together with a thought after the last of them.

    Args:
        config: of a thinking model; or of a plain one, whose texts may fill the context.
        n_ahead: tokens of a thought; None is the config's.

    Returns:
        None if the config does not tell the context.

    Raises:
        SettingsError: a thought cannot have that many tokens, or leaves no room for a text.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(config, QuietStarConfig):
        return limit
    n_ahead = config.resolve_n_ahead(n_ahead)
    if limit is not None and n_ahead >= limit:
        raise SettingsError(f"n_ahead is {n_ahead}, and the model's context {limit}; give at most {limit - 1}")
    return None if limit is None else limit - n_ahead


SETTINGS = frozenset(QuietStarConfig.__annotations__) - {"base_config"}
"""names of the settings that turn a base model into a thinking one"""


def check_checkpoint(name: str | Path, model_class: Callable[[QuietStarConfig], nn.Module], **kwargs: Any) -> None:
    """Check the files of a thinking model before its weights are loaded.

    Args:
        name: folder or hub name.
        model_class: builds the model that a config describes; it is called on the meta device.
        kwargs: those of `from_pretrained`.

    Raises:
        CheckpointError: adapters lie beside the model, the base model's weights were saved in 4 or 8 bits, or the
            weights are far too few for the config.
    """
    check_alone(name, **hub_arguments(kwargs))
    folder = Path(name, kwargs.get("subfolder", ""))
    if not folder.is_dir():
        return
    config = kwargs.get("config")
    if not isinstance(config, QuietStarConfig):
        config = QuietStarConfig.from_pretrained(config or folder)
    if packing_of(getattr(config.base_config, "quantization_config", None)) == "bitsandbytes":
        raise CheckpointError(
            f"{folder} holds a thinking model whose base model's weights are still packed by bitsandbytes, and is not "
            "loaded; a checkpoint of a run in 4 bits is for --resume, which ends with an ordinary folder: for one of "
            "your own, call base_lm.dequantize() before save_pretrained"
        )
    check_folder(folder, lambda: model_class(copy.deepcopy(config)))
