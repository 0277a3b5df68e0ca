"""The stages of a curriculum, carried out one after the other.

A stage is a training run with a folder of its own, OUT/stage-1 for instance, which could be run by hand. It begins with
the model that was best on held-out text in the stage before. The model of the last stage is also that of OUT.
"""

import copy
import gc
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from quietstar.base.origin import CARD
from quietstar.errors import SettingsError
from quietstar.reporting.durations import in_words
from quietstar.reporting.tables import json_lines
from quietstar.runs.folders import (
    MARKER,
    UNFINISHED,
    alone_in,
    check_inputs,
    check_output_folder,
    claim,
    is_empty,
    read_settings,
    versions,
    write_whole,
)
from quietstar.runs.processes import Processes
from quietstar.training import checkpoints
from quietstar.training.arguments import METHOD_SETTINGS, QuietStarTrainingArguments
from quietstar.training.card import write_card
from quietstar.training.curriculum import CHOSEN_BY, CurriculumArguments, Stage, check_curriculum, stages_of
from quietstar.training.data.arguments import DataArguments
from quietstar.training.dry_run import DryRun
from quietstar.training.end import final_save
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.optimizer import settings_kept
from quietstar.training.publish import published_at_end
from quietstar.training.resuming import resuming_from
from quietstar.training.run import NOT_COMPARED_ON_RESUME, default_folder, name_folder, run_training
from quietstar.training.same_run import TRAINING, plain_value, refuse_changes
from quietstar.training.weights import load_optimizer

logger = logging.getLogger(__name__)

RESULTS, LOG = "results.json", "log.jsonl"
"""files of a run's last figures, by which a stage is known to be finished, and of all figures"""
BEFORE = ("eval_nll_before", "eval_drift", "eval_gain")
"""figures of a stage that compare with the model before it"""
OF_STAGE = (RESULTS, LOG, MARKER, CARD)
"""files of a stage that are not part of its model"""


def run_curriculum(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    curriculum: CurriculumArguments,
    *,
    config: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train in stages, and return the last figures; arguments and errors are those of `run_training`.

    A stage that a health check ends (`stop_when_unhealthy`) is the last one.

    Raises:
        SettingsError: a curriculum does not go with an option, or the run to resume had another one.
    """
    check_curriculum(model_args, data_args, args, curriculum)
    stages = stages_of(curriculum, args)
    name_folder(args, default_folder(model_args, replace(args, n_ahead=stages[-1].n_ahead)))
    folder = Path(str(args.output_dir))
    processes = Processes(args.process_index, args.world_size, args.device)
    with ExitStack() as cleanup:
        cleanup.enter_context(published_at_end(args))
        if processes.is_first:
            _open(cleanup, folder, stages, model_args, data_args, args, curriculum, config)
        processes.wait()
        for stage in stages:
            if not (folder / stage.name / RESULTS).is_file():
                if processes.is_first:
                    logger.info(stage.words)
                more = []
                if curriculum.curriculum_keep_optimizer and stage.number > 1:
                    more.append(EarlierMoments(folder / stage.name_of_earlier))
                run_training(
                    model_of(stage, folder, model_args),
                    data_args,
                    arguments_of(stage, folder, args),
                    callbacks=[*more, *callbacks],
                )
                gc.collect()
            if processes.is_first:  # the next stage may need the optimizer of this one
                forget_checkpoints(stages[: stage.number - curriculum.curriculum_keep_optimizer], folder)
            processes.wait()
            if args.stop_when_unhealthy and not is_complete(folder, stage):
                stages = stages[: stage.number]  # With --resume, the next stage begins all the same.
                break
        if processes.is_first:
            with final_save(folder):
                gather(folder, stages)
        processes.wait()
    return dict(json.loads((folder / RESULTS).read_text()))


def is_complete(folder: Path, stage: Stage) -> bool:
    """Return whether a finished stage took all of its steps; a health check may have ended it before."""
    return int(lines_of(folder, stage)[-1]["step"]) >= stage.max_steps


def lines_of(folder: Path, stage: Stage) -> list[dict[str, Any]]:
    """Return the figures that a stage logged."""
    return [json.loads(line) for line in (folder / stage.name / LOG).read_text().splitlines()]


def dry_run_of_stages(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    curriculum: CurriculumArguments,
) -> list[str]:
    """Return a line about each stage: the time and memory of its steps, measured on a few with the first model."""
    check_curriculum(model_args, data_args, args, curriculum)
    lines, seconds = [], 0.0
    for stage in stages_of(curriculum, args):
        found: DryRun = run_training(copy.copy(model_args), data_args, replace(args, **stage.settings))["dry_run"]
        lines.append(f"{stage.words}: {found.words()}")
        seconds += found.seconds * found.n_steps
        gc.collect()
    return [*lines, f"all stages would take about {in_words(seconds)}, without evaluations and checkpoints"]


def model_of(stage: Stage, folder: Path, model_args: ModelArguments) -> ModelArguments:
    """Return which model a stage trains: the run's, or that of the stage before, with the adapters that it has."""
    found = copy.copy(model_args)
    if stage.number > 1:
        found.model = str(folder / stage.name_of_earlier)
        found.lora = found.branch_adapters = False
    found.merge = model_args.merge and stage.number == stage.n_stages
    return found


def arguments_of(stage: Stage, folder: Path, args: QuietStarTrainingArguments) -> QuietStarTrainingArguments:
    """Return how a stage trains: evaluated at its end at the latest, and with the best of its models at its end."""
    every = min(args.eval_steps or args.logging_steps, stage.max_steps)
    changes: dict[str, Any] = {
        "output_dir": str(folder / stage.name),
        "run_name": f"{args.run_name or folder.name}-{stage.name}",
        "resume": True,
        "overwrite": False,
        "data_seed": int(args.data_seed or 0) + stage.number - 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": CHOSEN_BY,
        "greater_is_better": False,
        "eval_steps": every,
        "save_strategy": args.eval_strategy,
        "save_steps": every,
    }
    return replace(args, **stage.settings, **changes)


class EarlierMoments(TrainerCallback):
    """Lets a run begin with the optimizer's moments from the best checkpoint of an earlier one, at its own rates."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load them, unless the run is resumed."""
        if state.global_step:
            return
        best = checkpoints.best_of(self.run)
        with resuming_from(best), settings_kept(kwargs["optimizer"], kwargs["lr_scheduler"], True):
            load_optimizer(kwargs["model"], kwargs["optimizer"], None, best)


def _open(
    cleanup: ExitStack,
    folder: Path,
    stages: list[Stage],
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    curriculum: CurriculumArguments,
    config: str | None,
) -> None:
    """Lock and claim the folder of the whole run; see `claim`."""
    resume = args.resume and not is_empty(folder)
    check_output_folder(folder, overwrite=args.overwrite, resume=resume)
    if args.overwrite:
        check_inputs(folder, [model_args.model, data_args.dataset, data_args.eval_dataset, config])
    given = given_to(model_args, data_args, args, curriculum)
    if resume:
        before = read_settings(folder).get("given")
        if not isinstance(before, dict):
            raise SettingsError(f"{folder} has no run with a curriculum; give another output_dir")
        if not args.allow_changes:
            refuse_changes(before, given, str(folder))
    cleanup.enter_context(alone_in(folder))
    settings = {"model": vars(model_args), "data": vars(data_args), "training": args.to_dict()}
    settings |= {"stages": [asdict(stage) for stage in stages], "given": given, "versions": versions()}
    claim(folder, settings, overwrite=args.overwrite, resume=resume)


def given_to(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    curriculum: CurriculumArguments,
) -> dict[str, Any]:
    """Return what decides what is learned in all stages, by the options that were given, as JSON has it."""
    found = {name: getattr(args, name) for name in (*TRAINING.split(), *METHOD_SETTINGS, "max_steps")}
    found |= vars(curriculum) | vars(data_args) | vars(model_args)
    return {name: plain_value(value) for name, value in found.items() if name not in NOT_COMPARED_ON_RESUME}


def gather(folder: Path, stages: list[Stage]) -> None:
    """Put the last stage's model, and the figures of all stages, into the folder of the whole run."""
    lines, results = [], {}
    for stage in stages:
        about = {"stage": stage.number, "n_ahead": stage.n_ahead, "n_ahead_talk": stage.n_ahead_talk}
        lines += [about | line for line in lines_of(folder, stage)]
        results[stage.name] = json.loads((folder / stage.name / RESULTS).read_text())
    last = folder / stages[-1].name
    for file in last.iterdir():
        if file.is_file() and file.name not in OF_STAGE:
            aside = folder / f"{file.name}{UNFINISHED}"
            aside.unlink(missing_ok=True)
            try:
                os.link(file, aside)
            except OSError:  # a file system without links
                shutil.copyfile(file, aside)
            os.replace(aside, folder / file.name)
    write_whole(folder / LOG, json_lines(lines))
    of_run = {name: value for name, value in results[last.name].items() if not name.startswith(BEFORE)}
    of_run |= {name: value for name, value in results[stages[0].name].items() if name == "eval_nll_before"}
    write_whole(folder / RESULTS, json.dumps(of_run | {"stages": results}, indent=2) + "\n")
    given = read_settings(folder)
    listed = "\n".join(f"- {stage.words}" for stage in stages)
    notes = [f"It was trained in stages, and the figures before training are from before the first:\n\n{listed}"]
    settings = given["model"] | given["data"] | given["training"] | {"learning_rate": None, "max_steps": None}
    write_card(folder, settings, of_run, notes=notes)
    forget_checkpoints(stages, folder)


def forget_checkpoints(stages: list[Stage], folder: Path) -> None:
    """Delete the checkpoints of stages that are finished; their models stay."""
    for stage in stages:
        for checkpoint in checkpoints.complete_checkpoints(folder / stage.name):
            checkpoints.remove(checkpoint)
