"""Whether a run that is resumed is the run that was stopped: the settings that decide what is learned next."""

from typing import Any

from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.training.arguments import METHOD_SETTINGS, QuietStarTrainingArguments

TRAINING = (
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "think_fraction",
    "optim",
    "learning_rate",
    "head_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "lr_scheduler_kwargs",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_args",
    "max_grad_norm",
    "clip_heads_apart",
    "num_train_epochs",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "skip_spikes",
    "dataloader_num_workers",
    "dataloader_drop_last",
    "ignore_data_skip",
)
"""arguments of training that matter; where it ends, how often it saves and what it shows do not"""


ADAPTERS = ("lora", "branch_adapters")
"""fields of a model's config that say which adapters it has"""


def what_matters(args: QuietStarTrainingArguments, config: QuietStarConfig, others: dict[str, Any]) -> dict[str, Any]:
    """Name -> value of every setting that decides what is learned, as JSON has it.

    Args:
        args: of the run.
        config: of the model that it trains.
        others: of text and model, where they are known.
    """
    found = {name: getattr(args, name, None) for name in TRAINING} | {"world_size": args.world_size}
    found |= (
        {name: getattr(config, name) for name in METHOD_SETTINGS}
        | {name: getattr(config, name) for name in ADAPTERS}
        | others
    )
    if "constant" not in str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)):
        found["max_steps"] = args.max_steps  # towards which the learning rate moves
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(getattr(value, "value", value))


def refuse_changes(before: dict[str, Any], now: dict[str, Any], checkpoint: str) -> None:
    """Raise SettingsError where a setting that both know has changed."""
    changed = [name for name in before if name in now and before[name] != now[name]]
    if changed:
        told = ", ".join(f"{name} is {now[name]!r} and was {before[name]!r}" for name in changed)
        raise SettingsError(
            f"{checkpoint} is of a run with other settings: {told}; give what it was, or --allow_changes to go on "
            "with the new ones, as another run than it would have been"
        )
