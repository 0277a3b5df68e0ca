"""A whole evaluation, from names to a folder of results."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from quietstar.config import room_beside_thought
from quietstar.errors import CheckpointError, SettingsError, first_line, shown
from quietstar.evaluation import lengths, perplexity, report, sweep, voting
from quietstar.evaluation.arguments import EvaluateArguments
from quietstar.evaluation.baseline import Baseline
from quietstar.evaluation.measures import (
    chain_of_thought,
    direct,
    encode_task,
    sweep_lengths,
    sweep_thresholds,
    text_perplexity,
)
from quietstar.evaluation.scoring import Continuation
from quietstar.evaluation.session import Evaluation
from quietstar.evaluation.tasks import Item, find_task, load_items, parse_data
from quietstar.inference.loading import context_length, load_model, name_of
from quietstar.inference.text_settings import say_what_is_set_aside
from quietstar.runs.contents import digest_of_model
from quietstar.runs.folders import MARKER, alone_in, check_inputs, check_output_folder, claim, is_empty, versions
from quietstar.runs.processes import Processes
from quietstar.text.files import read_texts

FREE = frozenset(
    {"overwrite", "resume", "output_dir", "batch_size", "device", "trust_remote_code", "data"}
    | {"perplexity", "baseline", "lm_eval_path"}
)
"""settings that may change when a run is resumed: no stored answer depends on them (an answer names its item)"""


def evaluate(
    model_name: str, args: EvaluateArguments, console: Console | None = None, *, config: str | None = None
) -> dict[str, Any]:
    """Evaluate a model, and write results.json, results.md and other results, as `quietstar evaluate` does.

    Processes that torchrun or Accelerate has launched share the work, and the first one writes.

    Args:
        model_name: folder or hub name of a thinking model; with `original` any model, also a GGUF file.
        args: what to evaluate, and how.
        console: prints progress and the table of results; None prints to stderr.
        config: the file that the settings came from, which `overwrite` must not delete.

    Returns:
        The contents of results.json: settings, versions, and as `results` a dictionary for each figure: task, measure,
        mode (thinking, base or original), estimate (value, low, high, n), difference to base, share_thought, ...

    Raises:
        QuietStarError: the user must fix something in the settings, the model, the data or the folder.
    """
    processes = Processes.launched(use_cpu=args.device == "cpu")
    console = console or Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    folder = Path(args.output_dir or f"runs/{name_of(model_name) or 'model'}-evaluation")
    settings = {
        "model": model_name,
        "weight_digest": digest_of_model(model_name),
        "settings": asdict(args),
        "versions": versions(),
    }
    resume = args.resume and not is_empty(folder)
    check_output_folder(folder, overwrite=args.overwrite, resume=resume)
    paths = parse_data(args.data)
    check_inputs(folder, [model_name, *paths.values(), args.perplexity, args.lm_eval_path, args.baseline, config])
    if resume:
        refuse_changed(folder, settings)
    items = {name: load_items(find_task(name), paths.get(name), args.limit) for name in args.tasks}
    baseline = None if args.baseline is None else Baseline(args.baseline)
    if baseline is not None:  # check before long work that it has these items
        for name, of_task in items.items():
            baseline.values(of_task, name, "exact_match")
            if args.cot:
                baseline.values(of_task, f"{name}-cot", "right")
    texts = None if args.perplexity is None else read_texts(args.perplexity)
    lm_tasks = None
    if args.lm_eval:
        from quietstar.evaluation.harness import known_tasks

        lm_tasks = known_tasks(args.lm_eval, args.lm_eval_path)
    model, tokenizer = load_model(model_name, args, original=args.original)
    check_context(model, args)
    run = Evaluation(model, tokenizer, args, folder, [], console, processes, baseline)
    # everything that can be wrong is checked before a folder changes and before long work
    windows = None if texts is None else perplexity.windows(texts, tokenizer, args.max_length, args.limit)
    encoded = {name: encode_task(run, find_task(name), of_task) for name, of_task in items.items()}
    if args.cot:
        for name, of_task in items.items():
            voting.check_context(model, tokenizer, of_task, args.voting, args.n_ahead)
            for item in of_task:
                voting.right_answer(find_task(name), item)
    if args.sweep or args.lengths or (windows is not None and "thinking" in run.modes):
        sweep.pyplot("the picture of a sweep or of a perplexity")
    processes.wait()  # until all processes have checked
    with ExitStack() as held:
        if processes.is_first:
            held.enter_context(alone_in(folder))
            claim(folder, settings, overwrite=args.overwrite, resume=resume)
        with writing(folder):
            return measure(run, settings, items, encoded, windows, lm_tasks)


def measure(
    run: Evaluation,
    settings: dict[str, Any],
    items: dict[str, list[Item]],
    encoded: dict[str, tuple[list[Continuation], str]],
    windows: list[Continuation] | None,
    lm_tasks: tuple[list[str], Any] | None,
) -> dict[str, Any]:
    """Measure all that was asked for, write it into the evaluation's folder, and return the contents of results.json.

    `encoded` has each task's items as tokens to score, and notes for the reader; `lm_tasks` has the names of lm-eval's
    tasks, and its manager of tasks.
    """
    args, folder, processes = run.args, run.folder, run.processes
    sweeps, by_length = {}, {}
    for name, of_task in items.items():
        sequences, notes = encoded[name]
        scores = direct(run, find_task(name), of_task, sequences, notes)
        if args.sweep:
            sweeps[name] = sweep_thresholds(run, sequences, scores)
        if args.lengths:
            by_length[name] = sweep_lengths(run, sequences, scores)
    if sweeps and processes.is_first:
        sweep.picture(sweeps, folder / "sweep.png")
    if args.cot:
        if processes.is_first:
            say_what_is_set_aside(run.model)
        for name, of_task in items.items():
            chain_of_thought(run, find_task(name), of_task)
    found = None if windows is None else text_perplexity(run, windows)
    if windows is not None and args.lengths:
        by_length[Path(str(args.perplexity)).name] = sweep_lengths(run, windows)
    if by_length and processes.is_first:
        lengths.picture(by_length, folder / "sweep_n_ahead.png")
    further: dict[str, Any] = {}
    if lm_tasks is not None:
        from quietstar.evaluation.harness import run_lm_eval

        if processes.is_first and run.figures:  # tasks of lm-eval may take hours, or fail
            report.write(folder, run.figures, settings, found, sweeps, by_length, further)
        further["lm_eval"] = run_lm_eval(run, *lm_tasks)
    results: dict[str, Any] = {}
    if processes.is_first:
        report.write(folder, run.figures, settings, found, sweeps, by_length, further)
        run.console.print(report.table(run.figures))
        if said := report.caveat(run.figures):
            run.console.print(said)
        results = json.loads((folder / "results.json").read_text())
    return processes.of_first(results)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write results into an error of one line; files that are there do not change.

    Raises:
        CheckpointError: results cannot be written.
    """
    try:
        yield
    except OSError as error:
        file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not (file and file.is_relative_to(folder)):
            raise
        raise CheckpointError(
            f"results cannot be written to {folder} ({first_line(error)}); fix that, and continue with --resume"
        ) from error


def check_context(model: PreTrainedModel, args: EvaluateArguments) -> None:
    """Raise SettingsError if items of max_length and a thought, the longest of a sweep, do not fit the context."""
    limit = context_length(model)
    for n_ahead in (args.n_ahead, *args.lengths):
        room = room_beside_thought(model.config, n_ahead)
        if (args.tasks or args.perplexity) and limit is not None and room is not None and args.max_length > room:
            raise SettingsError(
                f"max_length is {args.max_length}, a thought {limit - room}, and the model's context {limit}; give a "
                f"max_length of at most {room}"
            )


def refuse_changed(folder: Path, settings: dict[str, Any]) -> None:
    """Raise SettingsError if the run to resume had other settings."""
    try:
        before = json.loads((folder / MARKER).read_text())
        if not isinstance(before["settings"], dict):
            raise TypeError("settings are not an object")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise SettingsError(f"{folder / MARKER} does not belong to an evaluation; give another output_dir") from error
    now = json.loads(json.dumps(settings, default=str))
    if before.get("weight_digest") and now.get("weight_digest"):
        if before["weight_digest"] != now["weight_digest"]:
            raise SettingsError(
                f"output_dir {folder} holds answers of a model with other weights ({shown(before.get('model'))}) than "
                f"{shown(now['model'])} has now; they do not mix: give that model, another output_dir, or --overwrite"
            )
        changed = []
    else:  # a model of the hub
        changed = [name for name in ("model",) if before.get(name) != now[name]]
    old, new = before.get("settings", {}), now["settings"]
    changed += [name for name in new if name not in FREE and old.get(name) != new[name]]
    if changed:
        name = changed[0]
        was, is_now = (run.get(name, run.get("settings", {}).get(name)) for run in (before, now))
        raise SettingsError(
            f"output_dir {folder} holds answers with {name} {shown(was)}, now it is {shown(is_now)}; they do not mix: "
            "give the old setting, another output_dir, or --overwrite"
        )
