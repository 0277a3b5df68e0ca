"""A whole study: every arm and seed is trained and measured, one after the other, and then compared."""

import gc
import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.base.loading import need_tokenizer
from quietstar.errors import BadStepsError, SettingsError
from quietstar.inference.loading import UseArguments, load_model
from quietstar.runs.contents import digest_of_model
from quietstar.runs.folders import MARKER, alone_in, check_output_folder, claim, is_empty, versions
from quietstar.runs.options import OneLineParser
from quietstar.study.arguments import StudyArguments
from quietstar.study.arms import BASE, THINKING, UNTOUCHED, Arm
from quietstar.study.commands import Command, command_of, lengthened
from quietstar.study.cost import step_flops
from quietstar.study.measure import Measured, measure_predictions, measure_tasks, measure_thoughts, sharpest
from quietstar.study.progress import StudyProgress
from quietstar.study.recipe import Recipe
from quietstar.study.texts import digest_of_rows, read_texts
from quietstar.training.dry_run import DryRun
from quietstar.training.run import run_training

RECORD = "measured.json"
"""file of a run's figures; a run that has it is finished"""


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm and seed."""

    arm: Arm
    seed: int | None
    """None for an arm that does not train"""
    folder: Path
    command: Command | None
    step_flops: float = 0.0

    @property
    def name(self) -> str:
        """For messages."""
        return self.arm.name if self.seed is None else f"{self.arm.name}, seed {self.seed}"

    @property
    def n_steps(self) -> int:
        """Steps of training."""
        return 0 if self.command is None else self.command.args.max_steps

    @property
    def record(self) -> Path:
        """File of its figures."""
        return self.folder / RECORD

    @property
    def is_done(self) -> bool:
        """Whether it was trained and measured."""
        return self.record.is_file()


def runs_of(recipe: Recipe, folder: Path, parser: OneLineParser) -> list[ArmRun]:
    """Return every run of a recipe, seed by seed, so that a study that is stopped has whole seeds.

    Raises:
        SettingsError: an option of an arm is impossible.
        UnsupportedModelError: the model cannot be counted.
    """
    found: list[ArmRun] = []
    for arm in recipe.arms.values():
        if arm.kind == UNTOUCHED:
            found.append(ArmRun(arm, None, folder / "runs" / arm.name, None))
    for seed in recipe.seeds:
        of_seed = []
        for arm in recipe.arms.values():
            if arm.kind != UNTOUCHED:
                where = folder / "runs" / arm.name / f"seed-{seed}"
                command = command_of(recipe, arm, seed, where, parser)
                of_seed.append(ArmRun(arm, seed, where, command, step_flops(command)))
        most = max(run.n_steps * run.step_flops for run in of_seed if run.arm.kind == THINKING)
        for run in of_seed:
            if run.arm.matches_compute:
                n_steps = max(1, round(most / run.step_flops))
                assert run.command is not None
                run = replace(run, command=lengthened(run.command, n_steps, recipe.evaluations, parser))
            found.append(run)
    return found


class Study:
    """A study under way in its folder."""

    def __init__(self, recipe: Recipe, folder: Path, parser: OneLineParser) -> None:
        self.recipe, self.folder = recipe, folder
        self.runs = runs_of(recipe, folder, parser)
        trained = next(run.command for run in self.runs if run.command is not None)
        self.data, self.device = trained.data, trained.args.device
        tokenizer = need_tokenizer(recipe.model)
        self.texts = read_texts(recipe, self.data, tokenizer)
        self.contents = {
            "model": digest_of_model(recipe.model),
            "selection": digest_of_rows(self.texts.selection),
            "test": digest_of_rows(self.texts.test),
        }

    def chosen(self, args: StudyArguments) -> list[ArmRun]:
        """Return the runs that the options ask for; the untouched base is always among them."""
        return [
            run
            for run in self.runs
            if run.arm.name == BASE
            or ((not args.arms or run.arm.name in args.arms) and (not args.seeds or run.seed in (None, *args.seeds)))
        ]

    def try_out(self, run: ArmRun) -> DryRun:
        """Return the time of a step of a run on full rows, of a few that are taken; nothing is kept."""
        assert run.command is not None
        args = replace(run.command.args, dry_run=True)
        found: DryRun = run_training(run.command.model, run.command.data, args)["dry_run"]
        return found

    def carry_out(self, run: ArmRun, progress: StudyProgress, *, keep_model: bool) -> None:
        """Train and measure a run that is not done; checkpoints of the training go.

        Raises:
            QuietStarError: it cannot be trained or measured; it may have diverged.
        """
        progress.begin(run.name, run.n_steps, run.step_flops)
        results: dict[str, Any] = {}
        if run.command is not None:
            finished = run.folder / "results.json"
            if not finished.is_file():
                run_training(run.command.model, run.command.data, run.command.args, callbacks=[progress])
            results = json.loads(finished.read_text())
        record = self.measure(run, results)
        run.folder.mkdir(parents=True, exist_ok=True)
        for checkpoint in run.folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        record.write(run.record)
        if not keep_model:
            for file in run.folder.glob("model*.safetensors*"):
                file.unlink()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def measure(self, run: ArmRun, results: dict[str, Any]) -> Measured:
        """Return the figures of a trained run, or of an untouched model."""
        arm, recipe = run.arm, self.recipe
        record = Measured(
            arm=arm.name,
            seed=run.seed,
            nll=[],
            step_flops=run.step_flops,
            n_steps=run.n_steps,
            contents=self.contents,
        )
        if run.command is not None:
            record.command = run.command.line
            record.train_seconds = results["train_runtime"]
            metric = str(run.command.args.metric_for_best_model)
            lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
            held_out = [line for line in lines if line.get(metric) is not None]  # JSON's null is what was not finite
            if not held_out:
                raise BadStepsError(f"no evaluation on {recipe.selection} gave a finite {metric}: training diverged")
            record.curve = [[line["step"], line[metric]] for line in held_out]
            best = min(held_out[1:] or held_out, key=lambda line: line[metric])
            record.chosen_step = best["step"]
            record.figures = {name: value for name, value in best.items() if isinstance(value, float | int)}
            entropies = [line["thought_entropy"] for line in lines if "thought_entropy" in line]
            record.figures |= {"thought_entropy": entropies[-1]} if entropies else {}
        model, tokenizer = self._load(run)
        if arm.is_sharpened:
            record.sharpness = sharpest(model, self.texts.selection, recipe.batch_size)
        measure_predictions(record, model, self.texts, recipe, with_entropy=arm.name == BASE)
        measure_tasks(record, model, self.texts, recipe.batch_size)
        measure_thoughts(record, model, tokenizer, self.texts, recipe, run.folder)
        return record

    def _load(self, run: ArmRun) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        name = self.recipe.model if run.command is None else run.folder
        how = UseArguments(dtype="float32", device=str(self.device))
        return load_model(name, how, original=run.arm.kind != THINKING)

    def records(self) -> dict[Path, Measured]:
        """Return what has been measured so far, by file, in the order of the runs.

        Raises:
            SettingsError: one took another number of steps than it now would.
        """
        found = {run.record: Measured.read(run.record) for run in self.runs if run.is_done}
        for run in self.runs:
            if run.is_done and (before := found[run.record].n_steps) != run.n_steps:
                raise SettingsError(
                    f"{run.name} took {before:,} steps, and with the arms that were added it takes {run.n_steps:,}; "
                    f"delete {run.folder}, and it runs again"
                )
        return found


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return what a study's folder is recognised by."""
    return {"study": json.loads(json.dumps(asdict(recipe))), "versions": versions()}


def open_folder(stack: ExitStack, folder: Path, recipe: Recipe, args: StudyArguments) -> None:
    """Lock and claim the folder of a study until the stack closes.

    Raises:
        SettingsError: it is not free, or holds a study of another recipe.
    """
    resume = args.resume and not is_empty(folder)
    check_output_folder(folder, overwrite=args.overwrite, resume=resume)
    if resume:
        refuse_other(folder, recipe)
    stack.enter_context(alone_in(folder))
    claim(folder, settings_of(recipe), overwrite=args.overwrite, resume=resume)


def refuse_other(folder: Path, recipe: Recipe) -> None:
    """Raise SettingsError if a folder does not hold runs of the same recipe."""
    try:
        before = json.loads((folder / MARKER).read_text())["study"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise SettingsError(f"{folder} does not hold a study; give a folder that quietstar study wrote") from error
    now = settings_of(recipe)["study"]
    arms = before.get("arms")
    if isinstance(arms, dict) and all(now["arms"].get(name) == arm for name, arm in arms.items()):
        before["arms"] = now["arms"]  # arms may be added, and so may seeds
    for name in (key for key in now if key != "seeds" and before.get(key) != now[key]):
        raise SettingsError(
            f"{folder} holds a study with {name} {before.get(name)!r}, and the recipe has {now[name]!r}; two recipes "
            "do not mix: give the old recipe, or another output_dir"
        )
