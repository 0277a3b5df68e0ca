"""`quietstar study` from its options to its files: a whole study, a part of one, its plan, or parts put together."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from quietstar.errors import InterruptedRunError, QuietStarError, SettingsError
from quietstar.reporting.durations import in_words
from quietstar.runs.folders import check_inputs, check_output_folder, claim, is_empty
from quietstar.runs.options import OneLineParser
from quietstar.runs.processes import Processes
from quietstar.study.arguments import StudyArguments
from quietstar.study.arms import BASE
from quietstar.study.measure import Measured
from quietstar.study.progress import StudyProgress, output_to
from quietstar.study.recipe import Recipe, read_recipe
from quietstar.study.report import findings_of, write_report
from quietstar.study.run import RECORD, Study, open_folder, refuse_other, settings_of


def study(file: str, args: StudyArguments, parser: OneLineParser) -> Iterable[str]:
    """Carry out a study, and return what is to be said of it; lines of a dry run come as they are known.

    Args:
        file: the recipe.
        args: which parts of it, and where.
        parser: of `quietstar train`.

    Raises:
        QuietStarError: the user must fix something in the recipe, the model, the text or the folder.
    """
    if Processes.launched().n > 1:
        raise SettingsError(
            "a study runs in one process; give each GPU a part of it with --arms or --seeds, and --report"
        )
    overrides = {name: getattr(args, name) for name in ("model", "dataset", "selection", "test")}
    recipe = read_recipe(file, parser, overrides)
    check_chosen(recipe, args)
    folder = Path(args.output_dir or f"runs/study-{Path(file).stem}")
    if args.report:
        return put_together(recipe, folder, args)
    if args.dry_run:
        return planned(recipe, folder, parser)
    with ExitStack() as stack:
        check_output_folder(folder, overwrite=args.overwrite, resume=args.resume and not is_empty(folder))
        whole = Study(recipe, folder, parser)
        runs = whole.chosen(args)
        open_folder(stack, folder, recipe, args)
        whole.records()  # what was measured before must fit
        left = [run for run in runs if not run.is_done]
        failed: list[str] = []
        progress = StudyProgress(sum(run.n_steps * run.step_flops for run in left), len(runs), len(runs) - len(left))
        with progress.showing():
            for run in left:
                try:
                    with output_to(folder):
                        whole.carry_out(run, progress, keep_model=args.keep_models)
                except InterruptedRunError:
                    raise
                except QuietStarError as error:
                    if run.arm.name == BASE:  # nothing compares without it
                        raise
                    failed.append(f"{run.name}: failed: {error}")
        findings = findings_of(recipe, whole.records(), folder)
        findings["verdict"] += failed
        write_report(folder, findings)
    return told(findings, folder, len(failed))


def told(findings: dict[str, Any], folder: Path, n_failed: int = 0) -> Iterator[str]:
    """Yield what is said of a study that has ended.

    Raises:
        QuietStarError: some of its runs failed.
    """
    yield from findings["verdict"]
    yield f"wrote {folder}/study.md"
    if n_failed:
        raise QuietStarError(
            f"{n_failed} of the runs failed, and the report is of the others; change their arms' options, or try them "
            "again with --resume"
        )


def check_chosen(recipe: Recipe, args: StudyArguments) -> None:
    """Raise SettingsError if an arm or a seed was asked for that the recipe does not have."""
    for name, asked, known in (("arms", args.arms, recipe.arms), ("seeds", args.seeds, recipe.seeds)):
        for each in asked:
            if each not in known:
                raise SettingsError(f"{name} has {each}; choose from {', '.join(map(str, known))}")


def put_together(recipe: Recipe, folder: Path, args: StudyArguments) -> Iterable[str]:
    """Write the report of runs that were carried out in several folders.

    Raises:
        SettingsError: a folder holds runs of another recipe, or two have the same run.
    """
    check_output_folder(folder, overwrite=args.overwrite)
    check_inputs(folder, list(args.report))
    runs: dict[tuple[str, int | None], tuple[Path, Measured]] = {}
    for name in args.report:
        refuse_other(Path(name), recipe)
        for file in sorted(Path(name).rglob(RECORD)):
            record = Measured.read(file)
            if record.seed is not None and (record.arm, record.seed) in runs:
                raise SettingsError(f"{file} is a second run of {record.arm}, seed {record.seed}; give each part once")
            _, same = runs.setdefault((record.arm, record.seed), (file, record))
            if same.contents != record.contents:
                raise SettingsError(f"{file} is of another model or text than the other parts; give parts of one study")
    order = [(arm, seed) for seed in (None, *recipe.seeds) for arm in recipe.arms]
    findings = findings_of(recipe, dict(runs[run] for run in order if run in runs), folder)
    claim(folder, settings_of(recipe), overwrite=args.overwrite)
    write_report(folder, findings)
    return told(findings, folder)


def planned(recipe: Recipe, folder: Path, parser: OneLineParser) -> Iterator[str]:
    """Yield the lines of a dry run, which writes nothing that stays."""
    with tempfile.TemporaryDirectory() as output:
        yield from plan_of(Study(recipe, folder, parser), Path(output))


def plan_of(whole: Study, folder: Path) -> Iterator[str]:
    """Yield a line about each arm: its steps, what one costs, and how long one took, of a few that are tried."""
    total = 0.0
    for run in whole.runs:
        if run.command is None:
            yield f"{run.arm.name}: {run.arm.about}; it does not train"
        elif run.seed == whole.recipe.seeds[0]:
            with output_to(folder):
                step = whole.try_out(run)
            total += run.n_steps * step.seconds * len(whole.recipe.seeds)
            yield (
                f"{run.arm.name}: {run.arm.about}; {run.n_steps:,} steps of {run.step_flops / 1e12:.3g} TFLOP and "
                f"{step.seconds:.3g} s on full rows, {in_words(run.n_steps * step.seconds)} for each of "
                f"{len(whole.recipe.seeds)} seeds"
            )
    yield f"together about {in_words(total)} of training, without evaluations and measuring, on {whole.device}"
