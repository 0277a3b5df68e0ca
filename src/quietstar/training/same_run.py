"""Whether a resumed run is the run that was stopped: the settings that decide what it learns next."""

import logging
from functools import lru_cache
from typing import Any

from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.training.arguments import METHOD_SETTINGS, QuietStarTrainingArguments
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.windows import TextWindows

logger = logging.getLogger(__name__)

TRAINING = (
    "seed",
    "data_seed",
    "full_determinism",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "auto_find_batch_size",
    "think_fraction",
    "optim",
    "optim_args",
    "optim_target_modules",
    "learning_rate",
    "head_learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "clip_heads_apart",
    "num_train_epochs",
    "bf16",
    "fp16",
    "tf32",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "use_liger_kernel",
    "liger_kernel_config",
    "gradient_checkpointing",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "length_column_name",
    "skip_spikes",
    "dataloader_num_workers",
    "dataloader_drop_last",
    "dataloader_in_order",
    "accelerator_config",
    "ignore_data_skip",
)
"""arguments of training that decide what is learned; those of the method are in METHOD_SETTINGS"""

WHEN_AND_WHAT_IT_SHOWS = """
output_dir overwrite resume resume_from_checkpoint allow_changes dry_run max_steps max_bad_steps do_train do_eval
do_predict eval_on_start eval_strategy eval_steps eval_delay eval_tasks eval_data eval_limit eval_report_rows
stop_when_unhealthy health_checks
per_device_eval_batch_size prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model
greater_is_better save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
restore_callback_states_from_checkpoint thoughts_shown logging_strategy logging_steps logging_first_step
log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to
run_name project trackio_space_id trackio_bucket_id trackio_static_space_id push_to_hub hub_token hub_private_repo
hub_model_id hub_strategy hub_always_push hub_revision debug skip_memory_metrics"""

HOW_IT_RUNS = """
auto_micro_batch activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs
torch_empty_cache_steps use_cache use_cpu dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
ddp_backend ddp_timeout local_rank"""
"""memory, loading of batches and communication, which change figures by rounding at most"""

IGNORED = """
label_smoothing_factor average_tokens_across_devices remove_unused_columns label_names
fsdp fsdp_config deepspeed parallelism_config"""
"""by our loss and our batches; how a model is sharded is compared by itself"""

FREE = frozenset(f"{WHEN_AND_WHAT_IT_SHOWS} {HOW_IT_RUNS} {IGNORED}".split())
"""all other arguments: a resumed run may change them"""

ROWS = ("dataset", "dataset_config", "split", "eval_size", "text_column", "template", "sample_by", "shuffle_block")
CONTENTS = {
    "row_digest": ("the rows to train on", (*ROWS, "assistant_only_loss", "rows")),
    "file_digest": ("the files of the stream to train on", ("dataset",)),
    "weight_digest": ("the weights of the model", ("model",)),
}
"""digest -> what it is of, and the settings that do not matter if it is known, since it follows from them"""


ADAPTERS = ("lora", "branch_adapters")
"""fields of a model's config that say which adapters it has"""


def what_matters(
    args: QuietStarTrainingArguments, config: QuietStarConfig, others: dict[str, Any], texts: Any = None
) -> dict[str, Any]:
    """Return name -> value of every setting that decides what is learned, as JSON has it.

    Args:
        args: of the run.
        config: of the model that it trains.
        others: settings of text and model, as far as they are known.
        texts: to train on. Windows of ours know their contents; rows at hand come in the same batches, however many
            workers read them.
    """
    found = {name: getattr(args, name, None) for name in TRAINING} | {"world_size": args.world_size}
    if isinstance(texts, TextWindows):
        del found["dataloader_num_workers"]
    if isinstance(texts, (TextWindows, StreamedTextWindows)):
        others = others | texts.contents
    found |= {name: getattr(config, name) for name in (*METHOD_SETTINGS, *ADAPTERS)} | others
    if "constant" not in str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)):
        found["max_steps"] = args.max_steps  # The learning rate falls towards it.
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return value if value is None or type(value) in (bool, int, float, str) else str(getattr(value, "value", value))


def refuse_changes(before: dict[str, Any], now: dict[str, Any], checkpoint: str) -> None:
    """Raise SettingsError if a setting that both know has changed.

    Texts and weights are compared by their digests, or by their names if a checkpoint has no digests.
    """
    known = [name for name in CONTENTS if before.get(name) is not None and now.get(name) is not None]
    if "weight_digest" in now and not any(name in before for name in CONTENTS):
        _say_names_are_compared(checkpoint)
    changed = [name for name in before if name in now and not _same(name, before[name], now[name])]
    told = [f"{CONTENTS[name][0]} have changed" for name in known if name in changed]
    implied = {name for digest in known if digest not in changed for name in CONTENTS[digest][1]}
    others = [name for name in changed if name not in implied | CONTENTS.keys()]
    told += [f"{name} is {now[name]!r} and was {before[name]!r}" for name in others]
    if told:
        raise SettingsError(
            f"{checkpoint} is of a run with other settings: {', '.join(told)}; give the old ones, or resume "
            "with the new ones by --allow_changes, which makes it another run"
        )


def _same(name: str, before: Any, now: Any) -> bool:
    if name == "dataloader_num_workers":
        return max(before or 0, 1) == max(now or 0, 1)  # Without workers, the process reads as one worker would.
    if name == "streaming" and before is None:
        return True  # Earlier versions wrote the option, and not whether the texts were streamed.
    return bool(before == now)


@lru_cache
def _say_names_are_compared(checkpoint: str) -> None:
    logger.info("%s is of an earlier version: its model and its texts are compared by their names alone", checkpoint)
