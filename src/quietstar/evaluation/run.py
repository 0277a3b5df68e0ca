"""A whole evaluation, from names to a folder of results."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.errors import CheckpointError, SettingsError, first_line, shown
from quietstar.evaluation import perplexity, report, sweep, voting
from quietstar.evaluation.arguments import EvaluateArguments
from quietstar.evaluation.baseline import Baseline
from quietstar.evaluation.direct import DirectScores, alphabet_of, encode, score_items
from quietstar.evaluation.report import Figure
from quietstar.evaluation.scoring import Continuation, Speaker
from quietstar.evaluation.tasks import Item, Task, find_task, load_items, parse_data
from quietstar.inference.loading import context_length, load_model, name_of
from quietstar.inference.text_settings import say_what_is_set_aside
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.reporting.interval import Estimate, bootstrap, share_of
from quietstar.runs.contents import digest_of_model
from quietstar.runs.folders import MARKER, alone_in, claim, refuse_full, refuse_holding, versions
from quietstar.runs.processes import Processes
from quietstar.text.files import read_text

FREE = frozenset(
    {"overwrite", "resume", "output_dir", "batch_size", "device", "trust_remote_code", "data"}
    | {"perplexity", "baseline", "lm_eval_path"}
)
"""settings that a run which is resumed may change: no answer that is kept depends on them (an answer knows its item)"""


@dataclass(slots=True)
class Evaluation:
    """A model, what it is evaluated with, and what came out so far."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    args: EvaluateArguments
    folder: Path
    figures: list[Figure]
    console: Console
    processes: Processes
    baseline: Baseline | None = None

    @property
    def modes(self) -> list[str]:
        """original for a plain model; base and thinking for one that thinks."""
        return ["base", "thinking"] if isinstance(self.model, QuietStarForCausalLM) else ["original"]

    def speaker(self, mode: str, think: str | None = None) -> Speaker:
        """The model as it speaks in a mode; sampled thoughts are drawn from the seed, and the process, anew."""
        policy = ThinkPolicy.parse(think or self.args.think) if mode == "thinking" else None
        generator = torch.Generator(self.model.device).manual_seed(self.args.seed + self.processes.rank)
        how = (self.args.thought_temperature, self.args.thought_top_p, generator, self.processes)
        return Speaker(self.model, policy, *how)

    def beside_baseline(self, values: torch.Tensor, items: list[Item], name: str, measure: str) -> Estimate | None:
        """How far values [n] lie from an earlier evaluation's; None where there is none."""
        if self.baseline is None:
            return None
        return bootstrap(values.double() - self.baseline.values(items, name, measure))

    @contextmanager
    def progress(self, what: str, n: int, score: str) -> Iterator[Callable[[int, float], None]]:
        """A bar with the running score, of the first process."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(
            *columns,
            TextColumn("{task.fields[score]}"),
            console=self.console,
            transient=True,
            disable=not (self.console.is_terminal and self.processes.is_first),
        ) as bar:
            task = bar.add_task(what, total=-(-n // self.processes.n), score="")
            yield lambda done, value: bar.update(task, completed=done, score=f"{score} {value:.4f}")


def evaluate(
    model_name: str, args: EvaluateArguments, console: Console | None = None, *, config: str | None = None
) -> dict[str, Any]:
    """Evaluate a model, and write results.json, results.md and what else was asked for.

    Processes that torchrun or Accelerate has launched share the work, and the first one writes.

    Args:
        model_name: folder or hub name.
        args: what and how.
        console: where the progress bar and the table go; None is standard error.
        config: the file that settings came from, which must not be emptied away.

    Returns:
        What results.json holds.

    Raises:
        QuietStarError: something in the settings, the model, the data or the folder needs the user.
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
    refuse_full(folder, overwrite=args.overwrite, resume=args.resume)
    paths = parse_data(args.data)
    refuse_holding(folder, [model_name, *paths.values(), args.perplexity, args.lm_eval_path, args.baseline, config])
    if args.resume:
        refuse_changed(folder, settings)
    items = {name: load_items(find_task(name), paths.get(name), args.limit) for name in args.tasks}
    baseline = None if args.baseline is None else Baseline(args.baseline)
    if baseline is not None:  # that it has these items is seen before long work
        for name, of_task in items.items():
            baseline.values(of_task, name, "exact_match")
            if args.cot:
                baseline.values(of_task, f"{name}-cot", "right")
    text = None if args.perplexity is None else read_text(args.perplexity)
    lm_tasks = None
    if args.lm_eval:
        from quietstar.evaluation.harness import known_tasks

        lm_tasks = known_tasks(args.lm_eval, args.lm_eval_path)
    model, tokenizer = load_model(model_name, args, original=args.original)
    check_context(model, args)
    run = Evaluation(model, tokenizer, args, folder, [], console, processes, baseline)
    # whatever can be wrong is said before a folder is touched and before long work
    windows = None if text is None else perplexity.windows(text, tokenizer, args.max_length, args.limit)
    encoded = {name: encode_task(run, find_task(name), of_task) for name, of_task in items.items()}
    if args.cot:
        for name, of_task in items.items():
            voting.check_context(model, tokenizer, of_task, args.voting)
            for item in of_task:
                voting.right_answer(find_task(name), item)
    if args.sweep or (windows is not None and "thinking" in run.modes):
        sweep.pyplot("the picture of a sweep or of a perplexity")
    processes.wait()  # until all have found that it can be done
    with ExitStack() as held:
        if processes.is_first:
            held.enter_context(alone_in(folder))
            claim(folder, settings, overwrite=args.overwrite, resume=args.resume)
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
    """All that was asked for, written into the evaluation's folder; what results.json holds.

    Args:
        run: the evaluation.
        settings: of it, as results.json tells them.
        items: of each task.
        encoded: them as they are scored, and what a reader should know about that.
        windows: of the text whose perplexity is measured.
        lm_tasks: names of lm-eval's tasks, and the manager that knows them.
    """
    args, folder, processes = run.args, run.folder, run.processes
    sweeps = {}
    for name, of_task in items.items():
        points = direct(run, find_task(name), of_task, *encoded[name])
        if points:
            sweeps[name] = points
    if sweeps and processes.is_first:
        sweep.picture(sweeps, folder / "sweep.png")
    if args.cot:
        if processes.is_first:
            say_what_is_set_aside(run.model)
        for name, of_task in items.items():
            chain_of_thought(run, find_task(name), of_task)
    found = None if windows is None else text_perplexity(run, windows)
    further: dict[str, Any] = {}
    if lm_tasks is not None:
        from quietstar.evaluation.harness import run_lm_eval

        if processes.is_first and run.figures:  # tasks of lm-eval may take hours, or fail
            report.write(folder, run.figures, settings, found, sweeps, further)
        further["lm_eval"] = run_lm_eval(run, *lm_tasks)
    results: dict[str, Any] = {}
    if processes.is_first:
        report.write(folder, run.figures, settings, found, sweeps, further)
        run.console.print(report.table(run.figures))
        results = json.loads((folder / "results.json").read_text())
    return processes.of_first(results)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line why results cannot be written; what is there is as it was.

    Raises:
        CheckpointError: they cannot.
    """
    try:
        yield
    except OSError as error:
        file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not (file and file.is_relative_to(folder)):
            raise
        raise CheckpointError(
            f"results cannot be written to {folder} ({first_line(error)}); mend that, and go on with --resume"
        ) from error


def check_context(model: PreTrainedModel, args: EvaluateArguments) -> None:
    """Raise SettingsError where items of max_length and a thought do not fit the model."""
    limit, n_ahead = context_length(model), getattr(model.config, "n_ahead", 0)
    if (args.tasks or args.perplexity) and limit is not None and args.max_length + n_ahead > limit:
        raise SettingsError(
            f"max_length is {args.max_length}, a thought {n_ahead}, and the model's context {limit}; give a "
            f"max_length of at most {limit - n_ahead}"
        )


def refuse_changed(folder: Path, settings: dict[str, Any]) -> None:
    """Raise SettingsError where a run that is to be resumed had other settings than these."""
    try:
        before = json.loads((folder / MARKER).read_text())
        if not isinstance(before["settings"], dict):
            raise TypeError("its settings are none")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise SettingsError(f"{folder / MARKER} is of no evaluation; give another output_dir") from error
    now = json.loads(json.dumps(settings, default=str))
    if before.get("weight_digest") and now.get("weight_digest"):
        if before["weight_digest"] != now["weight_digest"]:
            raise SettingsError(
                f"output_dir {folder} holds answers of a model with other weights ({shown(before.get('model'))}) than "
                f"{shown(now['model'])} has now; they do not mix: give that model, another output_dir, or --overwrite"
            )
        changed = []
    else:  # a model of the hub, or a run of an earlier version
        changed = [name for name in ("model",) if before.get(name) != now[name]]
    old, new = before.get("settings", {}), now["settings"]
    changed += [name for name in new if name not in FREE and old.get(name) != new[name]]
    if changed:
        name = changed[0]
        was, is_now = (of.get(name, of.get("settings", {}).get(name)) for of in (before, now))
        raise SettingsError(
            f"output_dir {folder} holds answers with {name} {shown(was)}, now it is {shown(is_now)}; they do not mix: "
            "give the old setting, another output_dir, or --overwrite"
        )


def encode_task(run: Evaluation, task: Task, items: list[Item]) -> tuple[list[Continuation], str]:
    """A task's items as they are scored, and what a reader of the result should know about that."""
    alphabet = alphabet_of(task, run.tokenizer)
    sequences, n_cut = encode(items, run.tokenizer, alphabet, run.args.max_length)
    notes = [alphabet.note, f"{n_cut} items were cut to {run.args.max_length} tokens" if n_cut else ""]
    return sequences, "; ".join(note for note in notes if note)


def direct(
    run: Evaluation, task: Task, items: list[Item], sequences: list[Continuation], notes: str
) -> list[sweep.Point]:
    """Direct answers without thoughts and with them; the points of a sweep where one was asked for."""
    rule = sweep.swept_rule(run.args.think) if run.args.sweep else None
    scores: dict[str, DirectScores] = {}
    for mode in run.modes:
        with run.progress(f"{task.name} {mode}", len(items), "answer probability") as progress:
            scores[mode] = score_items(
                run.speaker(mode), sequences, run.args.batch_size, measure=rule, progress=progress
            )
        if run.processes.is_first:
            write_items(run.folder / f"{task.name}-{mode}.jsonl", items, scores[mode])
        for measure in ("answer_probability", "exact_match"):
            values = getattr(scores[mode], measure)
            base = getattr(scores["base"], measure) if mode == "thinking" else None
            run.figures.append(
                Figure(
                    task=task.name,
                    measure=measure,
                    mode=mode,
                    estimate=share_of(values) if measure == "exact_match" else bootstrap(values),
                    difference=None if base is None else bootstrap(values.double() - base.double()),
                    beside_baseline=run.beside_baseline(values, items, task.name, measure),
                    share_thought=scores[mode].share_thought,
                    seconds=scores[mode].seconds,
                    notes=notes,
                )
            )
    if rule is None:
        return []
    everywhere = scores["thinking"]
    if run.args.think != "always":
        everywhere = score_items(run.speaker("thinking", "always"), sequences, run.args.batch_size)
    return sweep.sweep(rule, scores["base"], everywhere)


def write_items(path: Path, items: list[Item], scores: DirectScores) -> None:
    """A JSON line for each item."""
    with path.open("w", encoding="utf-8") as file:
        for item, probability, exact in zip(
            items, scores.answer_probability.tolist(), scores.exact_match.tolist(), strict=True
        ):
            line = {
                "index": item.index,
                "item": voting.digest(item),
                "answer_probability": probability,
                "exact_match": exact,
            }
            file.write(json.dumps(line) + "\n")


def chain_of_thought(run: Evaluation, task: Task, items: list[Item]) -> None:
    """Majority votes without thoughts and with them."""
    right: dict[str, torch.Tensor] = {}
    for mode in run.modes:
        ledger = voting.Ledger(run.folder / f"{task.name}-cot-{mode}.jsonl", run.processes)
        thoughts: dict[str, Any] = {}
        if mode != "original":
            thoughts = {"think": run.args.think if mode == "thinking" else "never", **run.args.thought_settings}
        with run.progress(f"{task.name} votes {mode}", len(items), "right") as progress:
            answers = voting.vote_on(
                run.model,
                run.tokenizer,
                task,
                items,
                run.args.voting,
                ledger,
                run.args.seed,
                progress,
                **thoughts,
            )
        right[mode] = torch.tensor([answer["right"] for answer in answers])
        difference: Estimate | None = None
        if mode == "thinking":
            difference = bootstrap(right[mode].double() - right["base"].double())
        run.figures.append(
            Figure(
                task=task.name,
                measure=f"majority_of_{run.args.votes}",
                mode=mode,
                estimate=share_of(right[mode]),
                difference=difference,
                beside_baseline=run.beside_baseline(right[mode], items, f"{task.name}-cot", "right"),
                seconds=sum(answer["seconds"] for answer in answers) / run.processes.n,
            )
        )


def text_perplexity(run: Evaluation, windows: list[Any]) -> perplexity.Perplexity:
    """Of held-out text, and its picture."""
    thinking = run.speaker("thinking") if "thinking" in run.modes else None
    with run.progress("perplexity", len(windows), "nll") as progress:
        found = perplexity.measure_perplexity(run.speaker("base"), thinking, windows, run.args.batch_size, progress)
    for mode, estimate in (("base", found.base_nll), ("thinking", found.thinking_nll)):
        if estimate is not None:
            run.figures.append(
                Figure(
                    task=Path(str(run.args.perplexity)).name,
                    measure="nll, nats a token",
                    mode=mode if thinking else "original",
                    estimate=estimate,
                    difference=_negative(found.gain) if mode == "thinking" else None,
                    seconds=found.seconds[mode],
                    notes=f"{mode}: perplexity {torch.tensor(estimate.value).exp():.3f} over {found.n_tokens:,} tokens",
                )
            )
    if found.by_nll and run.processes.is_first:
        perplexity.picture(found, run.folder / "perplexity.png")
    return found


def _negative(gain: Estimate | None) -> Estimate | None:
    return None if gain is None else Estimate(value=-gain.value, low=-gain.high, high=-gain.low, n=gain.n)
