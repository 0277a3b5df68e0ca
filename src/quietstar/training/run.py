"""A whole training run, from names to a folder that holds the trained model."""

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback

import quietstar
from quietstar.base.loading import need_tokenizer
from quietstar.base.trunk import check_reach
from quietstar.errors import QuietStarError, SettingsError, first_line
from quietstar.inference.loading import name_of
from quietstar.runs.contents import digest_of_model
from quietstar.runs.folders import (
    alone_in,
    check_inputs,
    check_output_folder,
    claim,
    is_empty,
    read_settings,
    versions,
)
from quietstar.training import checkpoints
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.callbacks import KeepLog, lines_of_their_own
from quietstar.training.data.arguments import DataArguments
from quietstar.training.data.datasets import build_datasets
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.windows import TextWindows
from quietstar.training.distillation.arguments import LESSON
from quietstar.training.distillation.teacher import Teacher
from quietstar.training.dry_run import dry_run
from quietstar.training.end import SKIPPED, final_save, last_evaluation, save, write_figures
from quietstar.training.model import thinking_model, turn_thoughts_off
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.publish import published_at_end, upload
from quietstar.training.refusals import check_supported
from quietstar.training.signals import StopSignals
from quietstar.training.trainer import QuietStarTrainer

logger = logging.getLogger(__name__)

NOT_COMPARED_ON_RESUME = ("merge", "attention_backend", "trust_remote_code", "eval_dataset", "eval_split")
"""settings of model and text that do not change what is learned"""


def run_training(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    *,
    config: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Train, evaluate and save, as `quietstar train` does.

    Args:
        model_args: which model.
        data_args: which text.
        args: how. Its output_dir, where None, is named after the model.
        config: the file that settings came from, which `overwrite` must not delete.
        callbacks: further ones for the trainer.
        teacher: whose predictions the base model learns, in distillation.

    Returns:
        The last figures: of training, and of held-out text under `eval_` names.

    Raises:
        QuietStarError: something in the settings, the model, the text or the folder needs the user.
    """
    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            args.output_dir, args.resume, args.resume_from_checkpoint, args.report_to = folder, False, None, []
            args.dry_run = False
            with ExitStack() as cleanup:
                trainer, *_ = prepare(model_args, data_args, args, config, cleanup, teacher)
                return {"dry_run": dry_run(trainer, data_args.max_length)}
    name_folder(args, default_folder(model_args, args))
    with ExitStack() as cleanup:
        if model_args.original:  # Its checkpoints are of a thinking model with its thoughts off.
            cleanup.enter_context(published_at_end(args))
        trainer, tokenizer, checkpoint = prepare(model_args, data_args, args, config, cleanup, teacher)
        for callback in callbacks:
            trainer.add_callback(callback)
        cleanup.enter_context(trainer.tracked.ending())
        cleanup.enter_context(lines_of_their_own(trainer))
        # Signals are noted until the end: one that arrives after the last step does not interrupt the final save.
        trainer.parts.schedule.signals = cleanup.enter_context(StopSignals())
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if checkpoint is not None and result.global_step == checkpoints.step_of(checkpoint):
            logger.info("%s: nothing was left to train; to go on, give a larger max_steps", checkpoint.name)
        figures = result.metrics | last_evaluation(trainer)
        with final_save(trainer.folder):
            plain, merge = model_args.original, model_args.merge or model_args.original
            dtype = "float32" if model_args.dtype == "auto" else model_args.dtype
            save(trainer, tokenizer, plain=plain, merge=merge, dtype=dtype)
            write_figures(trainer, figures)
        if args.push_to_hub and trainer.is_world_process_zero():
            upload(args, trainer.folder)
        trainer.processes.wait()
    return figures


def prepare(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    config: str | None,
    cleanup: ExitStack,
    teacher: Teacher | None = None,
) -> tuple[QuietStarTrainer, PreTrainedTokenizerBase, Path | None]:
    """Return a trainer, its tokenizer and the checkpoint to resume from, all checked.

    The first process locks the run's folder until `cleanup` is closed.
    """
    if args.process_index > 0:
        logging.getLogger("quietstar").setLevel(logging.WARNING)  # Only the first process informs.
    check_supported(args, {})
    if model_args.original:
        turn_thoughts_off(args)
    folder = Path(str(args.output_dir))
    resume = args.named_checkpoint is not None or (args.resume and not is_empty(folder))
    settings = {"model": vars(model_args), "data": vars(data_args), "training": args.to_dict()}
    settings = {"versions": versions()} | settings
    check_output_folder(folder, overwrite=args.overwrite, resume=resume)
    if resume and "stages" in read_settings(folder):
        raise SettingsError(f"output_dir {folder} has a curriculum; give it again, or another output_dir")
    check_inputs(folder, [model_args.model, *([] if teacher is None else [teacher.name])])
    if args.overwrite:
        kept = [] if teacher is None or teacher.cache is None else [str(teacher.cache.folder)]
        check_inputs(folder, [data_args.dataset, data_args.eval_dataset, config, *kept])
    is_first, is_there = args.process_index == 0, folder.is_dir()
    if is_first and is_there:
        cleanup.enter_context(alone_in(folder))
    checkpoint = None
    if args.named_checkpoint is not None:
        checkpoint = checkpoints.find(folder, args.named_checkpoint)
    elif resume and (checkpoint := checkpoints.latest(folder, report=True)) is None:
        logger.info("output_dir %s has no complete checkpoint: the run begins", folder)

    tokenizer = need_tokenizer(model_args.model, trust_remote_code=model_args.trust_remote_code)
    train_dataset, eval_dataset = build_datasets(data_args, tokenizer, args.seed)
    log_counts(train_dataset, eval_dataset)
    model = thinking_model(
        model_args.model,
        args,
        tokenizer,
        **model_args.loading_settings(),
        **model_args.adapter_settings(),
        freeze_base=model_args.freeze_base,
        plain=model_args.original,
    )
    if model_args.attention_backend != "auto":
        model.set_attention_backend(model_args.attention_backend)
    check_reach(model.base_lm, data_args.max_length, model.config.n_ahead + model.config.n_ahead_talk - 1)
    if model_args.original:
        model.drop_branch_adapters()  # A plain model has none.
        for part in (model.mixing_head, model.thought_embeddings):
            part.requires_grad_(False)
    try:
        trainer = QuietStarTrainer(
            model, args, processing_class=tokenizer, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
    except QuietStarError:
        raise
    except (ValueError, RuntimeError, ImportError, OSError) as error:  # A tracker that is missing, a hub out of reach.
        raise SettingsError(f"transformers' Trainer refuses these options: {first_line(error)}") from error
    trainer.add_callback(KeepLog(trainer.folder))
    given = vars(model_args) | vars(data_args)
    trainer.settings = {name: value for name, value in given.items() if name not in NOT_COMPARED_ON_RESUME}
    trainer.settings |= {"streaming": True, "weight_digest": digest_of_model(model_args.model)}
    if not isinstance(train_dataset, StreamedTextWindows):
        trainer.settings |= {"streaming": False, "rows": len(train_dataset)}
    trainer.settings |= dict.fromkeys(LESSON)
    if teacher is not None:
        teacher.check_fits(model)
        trainer.parts.teacher = teacher
        trainer.settings |= teacher.settings
        if teacher.cache is not None and not isinstance(train_dataset, StreamedTextWindows):
            logger.info(teacher.cache.words(len(train_dataset), data_args.max_length))
    if checkpoint is not None:
        trainer.check_resumable(checkpoint)
        logger.info("resuming from %s", checkpoint.name)
    has_adapters, usual = model_args.lora or model_args.branch_adapters, QuietStarTrainingArguments.learning_rate
    if is_first and has_adapters and args.learning_rate == usual:
        logger.warning(
            "learning_rate is %g, the paper's for all weights, and adapters hardly change at it; 1e-4 is usual",
            args.learning_rate,
        )
    if is_first:
        if not is_there:
            cleanup.enter_context(alone_in(folder))
        claim(folder, settings, overwrite=args.overwrite, resume=resume)
    trainer.processes.wait()
    return trainer, tokenizer, checkpoint


def log_counts(train_dataset: TextWindows | StreamedTextWindows, eval_dataset: TextWindows | None) -> None:
    """Log how many rows there are, and how many texts were too short for one prediction."""
    if isinstance(train_dataset, StreamedTextWindows):
        logger.info("training on a stream of texts; those too short for one prediction are skipped")
    else:
        logger.info("%s rows to train on; %s", f"{len(train_dataset):,}", SKIPPED.format(train_dataset.n_skipped))
    if eval_dataset is not None:
        logger.info("%s rows held out; %s", f"{len(eval_dataset):,}", SKIPPED.format(eval_dataset.n_skipped))


def name_folder(args: QuietStarTrainingArguments, default: str) -> None:
    """Set the run's folder if none was given."""
    if args.output_dir is None or args.output_dir == "trainer_output":
        args.output_dir = default


def default_folder(model_args: ModelArguments, args: QuietStarTrainingArguments) -> str:
    """Return runs/MODEL-N-ahead, or runs/MODEL-original."""
    name = name_of(model_args.model) or "model"
    n_ahead = args.n_ahead or quietstar.QuietStarConfig.n_ahead
    return f"runs/{name}-original" if model_args.original else f"runs/{name}-{n_ahead}-ahead"
