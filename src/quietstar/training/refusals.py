"""What a QuietStarTrainer cannot do that transformers' Trainer can, refused before anything is loaded or trained."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from quietstar.errors import SettingsError, first_line
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.repeated_steps import check_repeatable
from quietstar.training.same_run import some_of
from quietstar.training.trackers import check_installed

OF_PREDICTIONS = "evaluations keep no predictions; give eval_tasks, or a callback that reads the figures"
REFUSED = {
    "compute_metrics": OF_PREDICTIONS,
    "preprocess_logits_for_metrics": OF_PREDICTIONS,
    "compute_loss_func": "the losses are the method's; teach another lesson by QuietStarForCausalLM's own arguments",
    "model_init": "the model comes from model; give that",
}
"""arguments of transformers' Trainer -> why they are refused"""
FIGURE = re.compile(
    r"loss|nll|base_nll|talk_nll_\d+|nll_before|drift(_low|_high)?|gain|thought_gain(_low|_high)?|reward_mean|reward_std"
    r"|thought_helped|equal_rewards|mixing_weight(_rms|_std)?|distinct_thoughts|thought_length|thought_entropy"
    r"|\w+_answer_probability|\w+_exact_match"
)
"""names of figures of an evaluation, without eval_"""


def check_supported(args: QuietStarTrainingArguments, given: Mapping[str, Any]) -> None:
    """Raise SettingsError if something was given that a QuietStarTrainer would ignore, or fail over later.

    Args:
        args: of the run.
        given: further arguments of the trainer.
    """
    if not isinstance(args, QuietStarTrainingArguments):
        raise SettingsError(
            f"args is {type(args).__name__}; give QuietStarTrainingArguments, which has all of its fields"
        )
    for name, why in REFUSED.items():
        if given.get(name) is not None:
            raise SettingsError(f"{name} was given, and {why}")
    if args.label_smoothing_factor:
        raise SettingsError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, and losses are of true tokens; leave it out"
        )
    if args.torch_compile:
        raise SettingsError(
            "torch_compile is on, and a training step makes gradients together with its losses, which torch does not "
            "compile; leave it out"
        )
    if args.dry_run:
        raise SettingsError(
            "dry_run is what quietstar train does with its model and texts; in Python, give a few max_steps"
        )
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if not FIGURE.fullmatch(metric):
        raise SettingsError(
            f"metric_for_best_model is {args.metric_for_best_model}, and evaluations have no such figure; give "
            "eval_talk_nll_0, eval_base_nll, or that of a task, such as eval_gsm8k_exact_match"
        )
    check_installed(args.report_to)
    _check_rows(given.get("train_dataset"))
    check_repeatable(args, given.get("train_dataset"))


def _check_rows(rows: Any) -> None:
    """Raise SettingsError if texts to train on are none, or have not been made to tokens."""
    if rows is None or isinstance(rows, IterableDataset) or not has_length(rows):
        return
    if len(rows) == 0:
        raise SettingsError("train_dataset has no rows; give texts to train on")
    if "input_ids" not in rows[0]:
        raise SettingsError(
            f"train_dataset has rows of {', '.join(map(str, rows[0]))}, and needs input_ids; make them with "
            "quietstar.build_datasets, or a tokenizer"
        )
    if all(len(row["input_ids"]) < 2 for row in some_of(rows)):
        raise SettingsError(
            "train_dataset has rows of one token, after which there is nothing to predict; give longer ones"
        )


@contextmanager
def installed(optim: Any) -> Iterator[None]:
    """Raise SettingsError, in one line, if the package of an optimizer is missing."""
    try:
        yield
    except ImportError as error:
        raise SettingsError(f"optim is {getattr(optim, 'value', optim)}: {first_line(error)}") from error
