"""Whether a resumed run is the run that was stopped: the settings and contents that decide what it learns."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.training.arguments import METHOD_SETTINGS, QuietStarTrainingArguments
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.windows import TextWindows

TRAINING = """
seed data_seed full_determinism per_device_train_batch_size gradient_accumulation_steps auto_find_batch_size
think think_fraction think_tokens n_ahead_min optim optim_args optim_target_modules learning_rate head_learning_rate
lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
clip_heads_apart num_train_epochs bf16 fp16 tf32 torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
liger_kernel_config gradient_checkpointing neftune_noise_alpha train_sampling_strategy length_column_name skip_spikes
dataloader_num_workers dataloader_drop_last dataloader_in_order accelerator_config ignore_data_skip
reference ema_decay kl_weight policy_epochs clip_ratio
"""
"""arguments of training that decide what is learned; METHOD_SETTINGS does so too, and no other argument"""

ROWS = ("dataset", "dataset_config", "split", "eval_size", "text_column", "template", "sample_by", "shuffle_block")
CONTENTS = {
    "row_digest": ("the rows to train on", (*ROWS, "assistant_only_loss", "rows")),
    "file_digest": ("the files of the stream to train on", ("dataset",)),
    "weight_digest": ("the weights of the model", ("model",)),
}
"""digest -> what it is of, and the settings that do not matter if it is known, since it follows from them"""

MOST_COMPARED = 1000
"""rows in memory that are compared with those of the run that is resumed"""

ADAPTERS = ("lora", "branch_adapters")
"""fields of a model's config that say which adapters it has"""


def some_of(rows: Any) -> Iterator[Any]:
    """Read and yield at most MOST_COMPARED rows, evenly spaced."""
    n = len(rows)
    return (rows[i] for i in range(0, n, -(-n // MOST_COMPARED)))


def contents_of(texts: Any) -> dict[str, str]:
    """Return what identifies rows of tokens in memory: a digest of how many there are, and of some of them.

    Nothing for texts that have a digest of their own (`what_matters`), for a stream, and where reading a row twice does
    not give the same tokens.
    """
    if texts is None or isinstance(texts, (TextWindows, IterableDataset)) or not has_length(texts):
        return {}
    digest = hashlib.blake2b(str(len(texts)).encode(), digest_size=16)
    for row, again in zip(some_of(texts), some_of(texts), strict=True):
        ids, same = (torch.as_tensor(each["input_ids"]).tolist() for each in (row, again))
        if ids != same:
            return {}
        digest.update(json.dumps(ids).encode())
    return {"row_digest": digest.hexdigest()}


def what_matters(
    args: QuietStarTrainingArguments, config: QuietStarConfig, others: dict[str, Any], texts: Any = None
) -> dict[str, Any]:
    """Return name -> value of every setting that decides what is learned, as JSON has it.

    Args:
        args: of the run.
        config: of the model that it trains.
        others: settings of text and model, as far as they are known.
        texts: to train on. TextWindows and StreamedTextWindows have a digest of their contents; TextWindows give the
            same batches whatever the number of workers.
    """
    found = {name: getattr(args, name, None) for name in TRAINING.split()} | {"world_size": args.world_size}
    if isinstance(texts, TextWindows):
        del found["dataloader_num_workers"]
    if isinstance(texts, (TextWindows, StreamedTextWindows)):
        others = others | texts.contents
    found |= {name: getattr(config, name) for name in (*METHOD_SETTINGS, *ADAPTERS)} | others
    if "constant" not in str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)):
        found["max_steps"] = args.max_steps  # The learning rate falls towards it.
    return {name: plain_value(value) for name, value in found.items()}


def plain_value(value: Any) -> Any:
    """Return a setting as JSON has it, for comparison."""
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple, set)):
        return [plain_value(item) for item in value]
    if hasattr(value, "to_dict"):
        return plain_value(value.to_dict())
    return value if value is None or type(value) in (bool, int, float, str) else str(getattr(value, "value", value))


def refuse_changes(before: dict[str, Any], now: dict[str, Any], checkpoint: str) -> None:
    """Raise SettingsError if a setting that both know has changed.

    Texts and weights are compared by their digests, or by their names if a checkpoint has no digests.
    """
    known = [name for name in CONTENTS if before.get(name) is not None and now.get(name) is not None]
    changed = [name for name in before if name in now and not _same(name, before[name], now[name])]
    changes = [f"{CONTENTS[name][0]} have changed" for name in known if name in changed]
    implied = {name for digest in known if digest not in changed for name in CONTENTS[digest][1]}
    others = [name for name in changed if name not in implied | CONTENTS.keys()]
    changes += [f"{name} is {now[name]!r} and was {before[name]!r}" for name in others]
    if changes:
        raise SettingsError(
            f"{checkpoint} is of a run with other settings: {', '.join(changes)}; give the old ones, or resume "
            "with the new ones by --allow_changes, which makes it another run"
        )


def _same(name: str, before: Any, now: Any) -> bool:
    if name == "dataloader_num_workers":
        return max(before or 0, 1) == max(now or 0, 1)  # Without workers, the process reads as one worker would.
    return bool(before == now)
