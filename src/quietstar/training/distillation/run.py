"""A whole distillation, from names to a plain model, and the share of the teacher's lead that it keeps."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from quietstar.base.loading import need_tokenizer
from quietstar.errors import SettingsError
from quietstar.evaluation.scoring import Continuation, Speaker, score
from quietstar.inference.loading import UseArguments, load_model
from quietstar.learn import IGNORED
from quietstar.reporting.interval import Estimate, bootstrap_ratios
from quietstar.runs.folders import write_whole
from quietstar.runs.processes import Processes
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.card import write_card
from quietstar.training.data.arguments import DataArguments
from quietstar.training.data.datasets import build_datasets
from quietstar.training.distillation.arguments import DistillArguments
from quietstar.training.distillation.teacher import Teacher
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.publish import published_at_end
from quietstar.training.run import name_folder, run_training

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
    if args.dry_run:
        distill_args = replace(distill_args, cache=None, cache_tokens=64)  # It keeps nothing.
    teacher = Teacher(name, distill_args, args.device, trust_remote_code=model_args.trust_remote_code)
    model_args = replace(model_args, model=distill_args.student or name, original=True)
    check_tokens(teacher, model_args)
    name_folder(args, f"runs/{Path(name).name}-{distill_args.objective}")
    if args.dry_run:
        return [run_training(model_args, data_args, args, config=config, teacher=teacher)["dry_run"].words()]
    folder = Path(str(args.output_dir))
    with published_at_end(args):
        figures = run_training(model_args, data_args, args, config=config, teacher=teacher)
        found = kept_share(teacher, model_args, folder, data_args, args)
        if args.process_index == 0:
            if found:
                write_whole(folder / FOUND, json.dumps(found, indent=2) + "\n")
            settings = vars(model_args) | vars(data_args) | args.to_dict() | teacher.settings
            write_card(folder, settings, figures, notes=[f"{each[0].upper()}{each[1:]}." for each in words(found)])
    return [f"saved to {folder}, a plain model", *words(found)]


def check_tokens(teacher: Teacher, student: ModelArguments) -> None:
    """Raise an error if the student does not have the teacher's tokens."""
    if student.model == teacher.name:
        return
    tokenizer = need_tokenizer(student.model, trust_remote_code=student.trust_remote_code)
    if tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise SettingsError(
            f"{student.model} does not have the tokens of {teacher.name}, and predictions are compared token by token; "
            "give a student of the same tokenizer"
        )


def kept_share(
    teacher: Teacher,
    student: ModelArguments,
    folder: Path,
    data_args: DataArguments,
    args: QuietStarTrainingArguments,
) -> dict[str, Any]:
    """Return the nll of held-out text by teacher and student, and the share of the teacher's lead that is made up for.

    The lead is over the student before it learned. Only tokens with a label count. Intervals are over rows; nothing is
    returned without held-out text.
    """
    _, held_out = build_datasets(data_args, teacher.tokenizer, args.seed)
    if held_out is None:
        return {}
    texts = [held_out[index] for index in range(len(held_out))]
    rows = [Continuation(ids=list(text["input_ids"]), first=1) for text in texts]
    counted = [torch.as_tensor(text.get("labels", text["input_ids"]))[1:] != IGNORED for text in texts]
    shared = Processes(args.process_index, args.world_size, args.device)

    def nll(speakers: list[Speaker]) -> torch.Tensor:
        """Return the nll of each row [n, 1]; several speakers predict the mean of their probabilities."""
        scores = [score(speaker, rows, args.per_device_eval_batch_size) for speaker in speakers]
        found = []
        for index, counts in enumerate(counted):
            logprob = torch.stack([each[index].logprob.double() for each in scores])
            found.append(-(logprob.logsumexp(0) - math.log(len(scores)))[counts].sum())
        return torch.stack(found)[:, None]

    sums = {"teacher": nll(teacher.speakers(args.seed, shared))}
    sums["teacher_without"] = nll([Speaker(teacher.model, processes=shared)])
    how = UseArguments(dtype="float32", device=str(args.device), trust_remote_code=student.trust_remote_code)
    for name, source in (("before", student.model), ("after", folder)):
        model, _ = load_model(source, how, original=True)
        sums[name] = nll([Speaker(model, processes=shared)])
    n = torch.tensor([float(counts.sum()) for counts in counted], dtype=torch.float64)[:, None]
    lead, gain = sums["before"] - sums["teacher"], sums["before"] - sums["after"]
    found = {name: bootstrap_ratios(each, n)[0] for name, each in sums.items()}
    found |= {"teacher_lead": bootstrap_ratios(lead, n)[0], "student_gain": bootstrap_ratios(gain, n)[0]}
    found["kept"] = bootstrap_ratios(gain, lead)[0]
    return {name: asdict(each) for name, each in found.items()}


def words(found: dict[str, Any]) -> list[str]:
    """Return sentences about what `kept_share` found."""
    if not found:
        return []
    each = {name: Estimate(**value) for name, value in found.items()}
    lead, gain, kept = each["teacher_lead"], each["student_gain"], each["kept"]
    line = (
        f"held-out text, nats a token: {each['before'].value:.4f} before, {each['after'].value:.4f} now; the teacher "
        f"{each['teacher'].value:.4f} with thoughts, {each['teacher_without'].value:.4f} without"
    )
    if lead.high < 0:
        return [line, f"the teacher predicts worse than the student before: its lead is {lead.signed()} nats a token"]
    if lead.low <= 0:
        return [line, f"the teacher's lead of {lead.signed()} nats a token may be none, with nothing to make up for"]
    return [
        line,
        f"the student gained {gain.signed()}, {kept.value:.0%} of the teacher's lead of {lead.signed()} "
        f"(95 % interval {kept.low:.0%} to {kept.high:.0%})",
    ]
