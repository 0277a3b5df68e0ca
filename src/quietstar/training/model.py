"""The model that a run trains: loaded by its name, given thoughts if it has none, with the run's settings."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from quietstar.base.ids import check_tokenizer, set_token_ids
from quietstar.base.loading import holds_thinking_model
from quietstar.base.precision import HALVES, train_in_float32
from quietstar.config import SETTINGS, QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.model import QuietStarForCausalLM
from quietstar.training.arguments import QuietStarTrainingArguments

logger = logging.getLogger(__name__)


def thinking_model(
    model: str | Path | PreTrainedModel,
    args: QuietStarTrainingArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    freeze_base: bool = False,
    plain: bool = False,
    **settings: Any,
) -> QuietStarForCausalLM:
    """Return the model to train, with the method's settings of a run.

    Args:
        model: as QuietStarTrainer takes it.
        args: its method settings override the model's.
        tokenizer: of the model.
        freeze_base: train only mixing head, thought embeddings and adapters of branches, in a model given by name.
        plain: of a thinking model given by name, take the base model alone, its adapters merged.
        settings: further fields of QuietStarConfig and arguments of `from_pretrained`, for a model that is made
            here from a base model. Without a dtype, the weights that train become float32, and frozen ones stay as
            they are stored.

    Raises:
        SettingsError: a setting can no longer be changed in a thinking model, or does not fit the model.
    """
    method = args.method_settings()
    set_seed(args.seed)  # The mixing head begins at random.
    if isinstance(model, (str, Path)):
        model = _by_name(str(model), tokenizer, method, settings, freeze_base, plain)
    if not isinstance(model, QuietStarForCausalLM):
        model = QuietStarForCausalLM.from_base(model, tokenizer=tokenizer, **method)
    else:
        _change(model, method)
    check_lengths(model.config, args)
    if tokenizer is not None:
        set_token_ids(model.config, model, tokenizer)
        check_tokenizer(model, tokenizer)
    return model


def _change(model: QuietStarForCausalLM, method: dict[str, Any]) -> None:
    """Set the method's settings of a thinking model; raise SettingsError for one that can no longer be changed."""
    text = method.pop("initial_thought_text", model.config.initial_thought_text)
    if text != model.config.initial_thought_text:
        raise SettingsError(
            f"initial_thought_text is {text!r}, but this model's thoughts began as "
            f"{model.config.initial_thought_text!r} and are trained from there; leave it out"
        )
    for name in ("mixing", "learn_to_end"):
        if method.get(name, made := getattr(model.config, name)) != made:
            raise SettingsError(
                f"{name} is {method[name]}, but this model was made with {made}; leave it out, or start from a base "
                "model"
            )
    if "filler_text" in method:
        model.config.filler_token_id = None
    for name, value in method.items():
        setattr(model.config, name, value)
    model.config.check()


def check_lengths(config: QuietStarConfig, args: QuietStarTrainingArguments) -> None:
    """Raise SettingsError if settings of the length of thoughts do not fit a model's config."""
    args.check_n_ahead_min(config.n_ahead)
    if config.length_price and not config.learn_to_end:
        raise SettingsError(
            f"length_price is {config.length_price}, and this model's thoughts are all equally long; leave it out, or "
            "add --learn_to_end, for a model that is given thoughts now"
        )


OF_BASE_MODELS = {"lora": "lora", "branch_adapters": "branch_adapters", "quantization_config": "load_in_4bit"}
"""what only a base model takes: argument of `from_base` -> option"""


def _by_name(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    method: dict[str, Any],
    settings: dict[str, Any],
    freeze_base: bool,
    plain: bool,
) -> QuietStarForCausalLM:
    if not holds_thinking_model(name):
        model = QuietStarForCausalLM.from_base(name, tokenizer=tokenizer, **method, **settings)
    elif plain and not settings.get("quantization_config"):
        how = {key: settings[key] for key in settings.keys() - SETTINGS}
        if how.get("dtype") == "auto" and QuietStarConfig.from_pretrained(name).lora is not None:
            how["dtype"] = "float32"  # Most of what adapters add is lost if they are merged in 16 bits.
        base_lm = _plain(QuietStarForCausalLM.from_pretrained(name, **how))
        own = {key: settings[key] for key in settings.keys() & SETTINGS}
        model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer, **method, **own)
    elif fixed := [option for field, option in OF_BASE_MODELS.items() if settings.get(field)]:
        raise SettingsError(
            f"{name} is a thinking model already, and {', '.join(fixed)} can only be given to a base model; leave out"
        )
    else:
        model = QuietStarForCausalLM.from_pretrained(name, **settings)
    if freeze_base:
        model.freeze_base()
    if settings.get("dtype", "auto") == "auto":
        train_in_float32(model)
    return model


def _plain(model: QuietStarForCausalLM) -> PreTrainedModel:
    """Return the base model of a thinking one: adapters of every pass merged, those of branches dropped."""
    model.merge_lora()
    model.drop_branch_adapters()
    return model.base_lm


OF_THOUGHTS = """
think_fraction think_tokens think n_ahead_min reference ema_device kl_weight policy_epochs clip_ratio eval_report_rows
head_learning_rate
"""
"""arguments besides the method's settings that are about thoughts"""


def thought_options(args: QuietStarTrainingArguments) -> list[str]:
    """Return the options about thoughts that were given."""
    others = {field.name: field.default for field in fields(args) if field.name in OF_THOUGHTS.split()}
    return sorted(args.method_settings()) + [name for name, value in others.items() if getattr(args, name) != value]


def turn_thoughts_off(args: QuietStarTrainingArguments) -> None:
    """Set arguments under which a thinking model learns exactly as its base model would."""
    if given := thought_options(args):
        raise SettingsError(f"original trains without thoughts, but {', '.join(given)} was given; leave one out")
    args.think_fraction, args.base_loss_weight, args.n_ahead_talk, args.thoughts_shown = 0.0, 1.0, 1, 0


def warn_of_lost_updates(model: nn.Module) -> None:
    """Warn if weights that train are kept in 16 bits, where most updates are rounded away."""
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.requires_grad)
    if (dtype := next((dtype for dtype in dtypes if dtype in HALVES), None)) is None:
        return
    logger.warning(
        "the weights that train are %s, and an update smaller than %.2g of a weight is lost, as nearly all are at "
        "usual learning rates; load the model in float32 (--dtype auto or float32; from Python dtype=torch.float32): "
        "with bf16 on, it computes in bfloat16 all the same",
        str(dtype).removeprefix("torch."),
        torch.finfo(dtype).eps / 2,
    )
