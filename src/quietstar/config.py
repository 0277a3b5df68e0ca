"""What a thinking model is: the settings of the method around the config of an ordinary language model."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from quietstar.errors import SettingsError

INNER_IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")


class QuietStarConfig(PreTrainedConfig):
    """Settings of a Quiet-STaR model (arXiv 2403.09629, section 4), beside those of its base model.

    Args:
        base_config: config of the base model, or its dictionary with `model_type`.
        n_ahead: tokens of a thought, start and end included; `n_ahead - 2` of them are sampled.
        n_ahead_talk: true tokens predicted after each thought when a loss is asked for.
        n_passes: thoughts sampled for each position in training.
        thought_temperature: temperature at which thought tokens are drawn in training.
        reinforce_temperature: temperature of the log-probabilities in the policy loss.
        policy_weight: weight of the policy loss beside the nll.
        base_loss_weight: share of the base model's own nll in the nll; the rest is the talk loss.
        embedding_scale: start and end are fed as this many times their stored parameter, so that a step of
            Adam moves them that much further.
        initial_thought_text: start and end begin as the embedding of this text's first token.
        suppressed_token_ids: tokens that neither a thought nor `generate` may contain.
        lora: settings of the low-rank adapters in the base model, as `peft.LoraConfig` takes them; None
            where there are none.

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
    reinforce_temperature: float = 3.0
    policy_weight: float = 1e6
    base_loss_weight: float = 0.5
    embedding_scale: float = 100.0
    initial_thought_text: str = "---"
    suppressed_token_ids: list[int] | None = None
    lora: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.base_config, dict):
            settings = dict(self.base_config)
            if "model_type" not in settings:
                raise SettingsError(f"base_config has no model_type (it has {sorted(settings)}); add it")
            self.base_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.suppressed_token_ids = sorted(self.suppressed_token_ids or [])
        # transformers hands the outer implementations, None at this point, down to inner configs, and an inner
        # model whose attention is None attends without its mask. The inner ones stay what they were.
        inner = {name: getattr(self.base_config, name, None) for name in INNER_IMPLEMENTATIONS}
        super().__post_init__(**kwargs)
        for name, implementation in inner.items():
            if self.base_config is not None and getattr(self, name) is None:
                setattr(self.base_config, name, implementation)
        self.check()

    def check(self) -> None:
        """Raise SettingsError where a setting is impossible."""
        at_least = {"n_ahead": 2, "n_ahead_talk": 1, "n_passes": 1}
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                hint = " (start and end of the thought count)" if name == "n_ahead" else ""
                raise SettingsError(f"{name} is {value!r}; give a whole number of at least {lowest}{hint}")
        for name in ("reinforce_temperature", "embedding_scale"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; give a number above 0")
        for name in ("thought_temperature", "policy_weight"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; give a number of at least 0")
        if not 0 <= self.base_loss_weight <= 1:
            raise SettingsError(f"base_loss_weight is {self.base_loss_weight!r}; give a number from 0 to 1")
        if not self.initial_thought_text:
            raise SettingsError("initial_thought_text is empty; give a text such as '---'")

    @property
    def n_thought_tokens(self) -> int:
        """K, the sampled tokens of a thought."""
        return self.n_ahead - 2

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
