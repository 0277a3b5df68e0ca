"""A whole training run, from names to a folder that holds the trained model."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

import quietstar
from quietstar.base import load_tokenizer
from quietstar.errors import CheckpointError, SettingsError
from quietstar.folders import claim, refuse_full
from quietstar.model import QuietStarForCausalLM
from quietstar.training.arguments import ModelArguments, QuietStarTrainingArguments
from quietstar.training.data import DataArguments, build_datasets
from quietstar.training.trainer import QuietStarTrainer, thinking_model
from quietstar.training.windows import StreamedTextWindows, TextWindows

logger = logging.getLogger(__name__)


def run_training(
    model_args: ModelArguments, data_args: DataArguments, args: QuietStarTrainingArguments
) -> dict[str, Any]:
    """Train, evaluate and save.

    Args:
        model_args: which model.
        data_args: which text.
        args: how. Its output_dir, where None, is named after the model.

    Returns:
        The last figures: of training, and of held-out text under `eval_` names.

    Raises:
        QuietStarError: something in the settings, the model, the text or the folder needs the user.
    """
    if model_args.original:
        train_without_thoughts(args)
    if args.output_dir is None or args.output_dir == "trainer_output":
        args.output_dir = default_folder(model_args, args)
    resume = bool(args.resume_from_checkpoint)
    settings = {
        "versions": versions(),
        "model": vars(model_args),
        "data": vars(data_args),
        "training": args.to_dict(),
    }
    refuse_full(args.output_dir, overwrite=args.overwrite, resume=resume)

    tokenizer = load_tokenizer(model_args.model, trust_remote_code=model_args.trust_remote_code)
    if tokenizer is None:
        raise CheckpointError(
            f"no tokenizer could be loaded from {model_args.model!r}: give a folder with tokenizer files beside "
            "the model, or the name of a model on a hub that can be reached"
        )
    train_dataset, eval_dataset = build_datasets(data_args, tokenizer, args.seed)
    log_texts(train_dataset, eval_dataset)
    model = thinking_model(
        model_args.model,
        args,
        tokenizer,
        dtype=model_args.dtype,
        trust_remote_code=model_args.trust_remote_code,
        **({"lora": model_args.lora_settings()} if model_args.lora else {}),
    )
    if model_args.original:
        for part in (model.mixing_head, model.thought_embeddings):
            part.requires_grad_(False)
    trainer = QuietStarTrainer(
        model,
        args,
        processing_class=tokenizer,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
    )
    folder = claim(args.output_dir, settings, overwrite=args.overwrite, resume=resume)
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(args) if resume else None)
    figures = result.metrics | last_evaluation(trainer)
    if trainer.is_world_process_zero():
        figures["n_skipped_texts"] = train_dataset.n_skipped
        (folder / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
        lines = (json.dumps(line) + "\n" for line in trainer.state.log_history)
        (folder / "log.jsonl").write_text("".join(lines))
    if isinstance(train_dataset, StreamedTextWindows):
        logger.info("%s", _skipped(train_dataset))
    save(trainer, tokenizer, plain=model_args.original, merge=model_args.merge or model_args.original)
    return figures


def log_texts(train_dataset: TextWindows | StreamedTextWindows, eval_dataset: TextWindows | None) -> None:
    """Say how many rows there are, and how many texts were too short for one prediction."""
    if isinstance(train_dataset, StreamedTextWindows):
        logger.info("training on a stream of texts; those too short for one prediction are skipped")
    else:
        logger.info("%s rows to train on; %s", f"{len(train_dataset):,}", _skipped(train_dataset))
    if eval_dataset is not None:
        logger.info("%s rows held out; %s", f"{len(eval_dataset):,}", _skipped(eval_dataset))


def _skipped(dataset: TextWindows | StreamedTextWindows) -> str:
    return f"{dataset.n_skipped:,} texts too short for one prediction were skipped"


def train_without_thoughts(args: QuietStarTrainingArguments) -> None:
    """Settings under which a thinking model learns exactly as its base model would."""
    given = sorted(name for name in args.method_settings() if name != "base_loss_weight")
    if given:
        raise SettingsError(f"original trains without thoughts, but {', '.join(given)} was given; leave one out")
    args.think_fraction, args.base_loss_weight, args.n_ahead_talk, args.thoughts_shown = 0.0, 1.0, 1, 0


def save(trainer: QuietStarTrainer, tokenizer: PreTrainedTokenizerBase, *, plain: bool, merge: bool) -> None:
    """Write the model into the run's folder: thinking, or its base model alone; adapters beside or merged."""
    model: QuietStarForCausalLM = trainer.accelerator.unwrap_model(trainer.model)
    if merge:
        model.merge_lora()
    if not plain:
        trainer.save_model()
    elif trainer.is_world_process_zero():
        model.base_lm.save_pretrained(trainer.args.output_dir)
        tokenizer.save_pretrained(trainer.args.output_dir)


def last_evaluation(trainer: QuietStarTrainer) -> dict[str, float]:
    """Figures of held-out text after the last step; an evaluation is run where the last step had none."""
    if trainer.eval_dataset is None:
        return {}
    for line in reversed(trainer.state.log_history):
        if "eval_loss" in line and line["step"] == trainer.state.global_step:
            return {name: value for name, value in line.items() if name.startswith("eval_")}
    return trainer.evaluate()


def checkpoint_to_resume(args: QuietStarTrainingArguments) -> str:
    """The checkpoint that was named, or the latest in output_dir."""
    named = args.resume_from_checkpoint
    if str(named).lower() != "true":
        if not Path(str(named)).is_dir():
            raise CheckpointError(f"there is no checkpoint {named}; give a folder checkpoint-N, or true for the latest")
        return str(named)
    latest = get_last_checkpoint(args.output_dir) if Path(str(args.output_dir)).is_dir() else None
    if latest is None:
        raise CheckpointError(f"output_dir {args.output_dir} holds no checkpoint to resume; leave the flag out")
    return latest


def default_folder(model_args: ModelArguments, args: QuietStarTrainingArguments) -> str:
    """runs/MODEL-N-ahead, or runs/MODEL-original."""
    name = Path(model_args.model).name or "model"
    n_ahead = args.n_ahead or quietstar.QuietStarConfig.n_ahead
    return f"runs/{name}-original" if model_args.original else f"runs/{name}-{n_ahead}-ahead"


def versions() -> dict[str, str]:
    """Of what the figures of a run depend on."""
    return {
        "quietstar": quietstar.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
