"""A whole distillation, from names to a plain model, and the share of the teacher's gain that it keeps."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from quietstar.base.loading import load_tokenizer
from quietstar.errors import SettingsError
from quietstar.evaluation.scoring import Continuation, Speaker, score
from quietstar.inference.loading import UseArguments, load_model
from quietstar.policy import ThinkPolicy
from quietstar.reporting.interval import Estimate, bootstrap_ratios
from quietstar.runs.folders import write_whole
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.data.arguments import DataArguments
from quietstar.training.data.datasets import build_datasets
from quietstar.training.distillation.arguments import DistillArguments
from quietstar.training.distillation.teacher import Teacher
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training

logger = logging.getLogger(__name__)

FOUND = "distill.json"


def distill(
    name: str,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
    distill_args: DistillArguments,
    *,
    config: str | None = None,
) -> list[str]:
    """Teach a student what a thinking model predicts, save it as a plain model, and return what is said of it.

    Args:
        name: of the teacher.
        model_args: how the student is loaded, and which of its weights learn.
        data_args: the text.
        args: how it is trained.
        distill_args: who learns, and what.
        config: the file that settings came from, which --overwrite must not delete.

    Raises:
        QuietStarError: something in the settings, the models, the text or the folder needs the user.
    """
    teacher = Teacher(name, distill_args, args.device)
    model_args = replace(model_args, model=distill_args.student or name, original=True)
    check_tokens(teacher, model_args.model)
    if args.output_dir is None or args.output_dir == "trainer_output":
        args.output_dir = f"runs/{Path(name).name}-{distill_args.objective}"
    figures = run_training(model_args, data_args, args, config=config, teacher=teacher)
    if args.dry_run:
        return [figures["dry_run"].words()]
    folder = Path(str(args.output_dir))
    found = kept_share(teacher, model_args.model, folder, data_args, args)
    if args.process_index == 0 and found:
        write_whole(folder / FOUND, json.dumps(found, indent=2) + "\n")
    return [f"saved to {folder}, a plain model", *words(found)]


def check_tokens(teacher: Teacher, student: str) -> None:
    """Raise SettingsError if the student does not have the teacher's tokens."""
    if student == teacher.name:
        return
    tokenizer = load_tokenizer(student)
    if tokenizer is None or tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise SettingsError(
            f"{student} does not have the tokens of {teacher.name}, and predictions are compared token by token; give "
            "a student of the same tokenizer"
        )


def kept_share(
    teacher: Teacher, student: str, folder: Path, data_args: DataArguments, args: QuietStarTrainingArguments
) -> dict[str, Any]:
    """Return the nll of held-out text by teacher and student, and the share of the teacher's gain that is kept.

    The gain is over the student before it learned. Intervals are over rows; nothing is returned without held-out text.
    """
    _, held_out = build_datasets(data_args, teacher.tokenizer, args.seed)
    if held_out is None:
        return {}
    rows = [Continuation(ids=list(held_out[i]["input_ids"]), first=1) for i in range(len(held_out))]
    how = UseArguments(dtype="float32", device=str(args.device))
    think = ThinkPolicy.parse(teacher.args.teacher_think)
    shared = Processes(args.process_index, args.world_size, args.device)
    thinking = Speaker(teacher.model, think, n_ahead=teacher.args.teacher_n_ahead, processes=shared)
    nll = {"teacher": _nll(thinking, rows, args)}
    for name, source in (("before", student), ("after", folder)):
        model, _ = load_model(source, how, original=True)
        nll[name] = _nll(Speaker(model, processes=shared), rows, args)
    weights = torch.tensor([float(len(row.ids) - 1) for row in rows], dtype=torch.float64)[:, None]
    sums = {name: each[:, None] for name, each in nll.items()}
    found = {name: bootstrap_ratios(each, weights)[0] for name, each in sums.items()}
    found["teacher_gain"] = bootstrap_ratios(sums["before"] - sums["teacher"], weights)[0]
    found["student_gain"] = bootstrap_ratios(sums["before"] - sums["after"], weights)[0]
    found["kept"] = bootstrap_ratios(sums["before"] - sums["after"], sums["before"] - sums["teacher"])[0]
    return {name: asdict(each) for name, each in found.items()}


def _nll(speaker: Speaker, rows: list[Continuation], args: QuietStarTrainingArguments) -> torch.Tensor:
    """Return the nll [n] of each row, summed over its tokens."""
    scores = score(speaker, rows, args.per_device_eval_batch_size)
    return torch.stack([-each.logprob.double().sum() for each in scores])


def words(found: dict[str, Any]) -> list[str]:
    """Return sentences about what `kept_share` found."""
    if not found:
        return []
    each = {name: Estimate(**value) for name, value in found.items()}
    gain, own = each["teacher_gain"], each["student_gain"]
    line = (
        f"held-out text, nats a token: {each['before'].value:.4f} before, {each['after'].value:.4f} now, and "
        f"{each['teacher'].value:.4f} by the teacher with thoughts"
    )
    if gain.low <= 0:
        return [line, f"the teacher's thoughts gain nothing that could be kept here: {gain.signed()} nats a token"]
    kept = each["kept"]
    return [
        line,
        f"the student gained {own.signed()}, {kept.value:.0%} of the teacher's {gain.signed()} "
        f"(95 % interval {kept.low:.0%} to {kept.high:.0%})",
    ]
