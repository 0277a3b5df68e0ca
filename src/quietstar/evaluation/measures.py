"""What an evaluation measures: direct answers, votes and perplexity, each of which adds its figures."""

from pathlib import Path
from typing import Any

import torch

from quietstar.evaluation import perplexity, sweep, voting
from quietstar.evaluation.direct import DirectScores, alphabet_of, encode, score_items
from quietstar.evaluation.lengths import LengthPoint, length_point, passes_a_token
from quietstar.evaluation.report import Figure
from quietstar.evaluation.scoring import Continuation, Scores, score
from quietstar.evaluation.session import Evaluation
from quietstar.evaluation.tasks import Item, Task
from quietstar.policy import ThinkPolicy
from quietstar.reporting.interval import Estimate, bootstrap, share_of
from quietstar.reporting.tables import json_lines
from quietstar.runs.folders import write_whole


def encode_task(run: Evaluation, task: Task, items: list[Item]) -> tuple[list[Continuation], str]:
    """Return a task's items as tokens to score, and notes for the reader of the result."""
    alphabet = alphabet_of(task, run.tokenizer)
    sequences, n_cut = encode(items, run.tokenizer, alphabet, run.args.max_length)
    notes = [alphabet.note, f"{n_cut} items were cut to {run.args.max_length} tokens" if n_cut else ""]
    return sequences, "; ".join(note for note in notes if note)


def direct(
    run: Evaluation, task: Task, items: list[Item], sequences: list[Continuation], notes: str
) -> dict[str, DirectScores]:
    """Score direct answers without thoughts and with them, and return the scores by mode."""
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
                    thought_length=scores[mode].thought_length,
                    seconds=scores[mode].seconds,
                    notes=notes,
                )
            )
    return scores


def sweep_thresholds(
    run: Evaluation, sequences: list[Continuation], scores: dict[str, DirectScores]
) -> list[sweep.Point]:
    """Return a point for each threshold of the policy, given the scores of `direct`."""
    everywhere = score_items(run.speaker("thinking", "always"), sequences, run.args.batch_size)
    return sweep.sweep(sweep.swept_rule(run.args.think), scores["base"], everywhere)


def sweep_lengths(
    run: Evaluation, sequences: list[Continuation], scores: dict[str, DirectScores] | None = None
) -> list[LengthPoint]:
    """Return a point without thoughts and one for each length of them, for a task or, without its scores, a text."""
    own = run.model.config.resolve_n_ahead(run.args.n_ahead)
    known = {} if scores is None else {None: scores["base"].of_tokens, own: scores["thinking"].of_tokens}
    policy, points = ThinkPolicy.parse(run.args.think), []
    base: list[Scores] = []
    for n_ahead in (None, *run.args.lengths):
        speaker = run.speaker("base") if n_ahead is None else run.speaker("thinking", n_ahead=n_ahead)
        found = known.get(n_ahead) or score(speaker, sequences, run.args.batch_size)
        base = base or found
        passes = 1.0
        if n_ahead is not None:
            passes = passes_a_token(policy, n_ahead, found, branches_differ=speaker.trunk.branches_differ)
        points.append(length_point(n_ahead, passes, found, base, is_task=scores is not None))
    return points


def write_items(path: Path, items: list[Item], scores: DirectScores) -> None:
    """Write a JSON line for each item."""
    columns = zip(items, scores.answer_probability.tolist(), scores.exact_match.tolist(), strict=True)
    lines = (
        {"index": item.index, "item": voting.digest(item), "answer_probability": probability, "exact_match": exact}
        for item, probability, exact in columns
    )
    write_whole(path, json_lines(lines))


def chain_of_thought(run: Evaluation, task: Task, items: list[Item]) -> None:
    """Take majority votes without thoughts and with them."""
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
    """Measure the perplexity of held-out text, and draw its picture."""
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
                    thought_length=found.thought_length if mode == "thinking" else None,
                    seconds=found.seconds[mode],
                    notes=f"{mode}: perplexity {torch.tensor(estimate.value).exp():.3f} over {found.n_tokens:,} tokens",
                )
            )
    if found.by_nll and run.processes.is_first:
        perplexity.picture(found, run.folder / "perplexity.png")
    return found


def _negative(gain: Estimate | None) -> Estimate | None:
    return None if gain is None else Estimate(value=-gain.value, low=-gain.high, high=-gain.low, n=gain.n)
