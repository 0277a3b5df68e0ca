"""Chain of thought with a majority vote: several worked answers to each question, and what most of them come to.

The defaults are those of the released script. An answer is written on disk as soon as it is there, so that a run that
is killed goes on where it was.
"""

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.errors import CheckpointError, DataError
from quietstar.evaluation.scoring import Stopwatch
from quietstar.evaluation.tasks import Item, Task
from quietstar.inference.loading import context_length, prompt_ids, text_after
from quietstar.inference.text_settings import text_settings
from quietstar.runs.folders import write_whole
from quietstar.runs.processes import ALONE, Processes
from quietstar.runs.seeds import mixed_seed

STOPS = ("Q:", "\n\n\n")
"""where a worked answer ends, as the model has begun with another question"""


@dataclass(frozen=True, slots=True)
class VotingSettings:
    """How a question is put, and its answer taken."""

    prompt: str = "\nA: Let's think step by step."
    cut_over: str = "\nTherefore, the answer (arabic numerals) is"
    n_votes: int = 8
    temperature: float = 0.9
    max_new_tokens: int = 384
    answer_tokens: int = 12


def extract_number(text: str) -> str | None:
    """The first number of a text, commas within it left out: `-1,250.50` gives -1250.5; None where there is none."""
    match = re.search(r"(-?)(\d*)(?:\.(\d+))?(?<=\d)", re.sub(r"(?<=\d),(?=\d)", "", text))
    if match is None:
        return None
    sign, whole, fraction = match.group(1), match.group(2).lstrip("0") or "0", (match.group(3) or "").rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return number if number == "0" else sign + number


def extract_letter(text: str) -> str | None:
    """The first letter of a choice, A to E, that stands alone; None where there is none."""
    match = re.search(r"(?<![A-Za-z'])[A-E](?![A-Za-z'])", text)
    return match.group() if match else None


def majority(votes: list[str | None]) -> str | None:
    """What most votes say, the first of those that are level; votes without an answer do not count."""
    counts = Counter(vote for vote in votes if vote is not None)
    return counts.most_common(1)[0][0] if counts else None


def extractor(task: Task) -> Callable[[str], str | None]:
    """How an answer to this task is found in a text."""
    return extract_number if task.numeric else extract_letter


def right_answer(task: Task, item: Item) -> str:
    """What votes are compared with.

    Raises:
        DataError: the item's answer holds none.
    """
    found = extractor(task)(item.answer)
    if found is None:
        raise DataError(f"the answer of item {item.index + 1}, {item.answer!r}, holds none for {task.name}; mend it")
    return found


def digest(item: Item) -> str:
    """Tells an item from others that may stand in its place."""
    return hashlib.sha256(item.text.encode()).hexdigest()[:16]


def check_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item], settings: VotingSettings
) -> None:
    """Raise DataError where a question, its reasoning and its answer may not fit the model."""
    limit, n_ahead = context_length(model), getattr(model.config, "n_ahead", 0)
    if tokenizer.pad_token_id is None:
        raise DataError("the tokenizer has no pad, eos or unk token to fill rows of votes with; give it one")
    n_more = settings.max_new_tokens + len(prompt_ids(tokenizer, settings.cut_over)) + settings.answer_tokens + n_ahead
    for item in items:
        n_tokens = len(prompt_ids(tokenizer, f"Q: {item.question}{settings.prompt}"))
        if limit is not None and n_tokens + n_more > limit:
            raise DataError(
                f"question {item.index + 1} has {n_tokens} tokens, {n_more} may follow, and the model's context is "
                f"{limit}; give a smaller --cot_tokens, or leave that question out"
            )


@torch.no_grad()
def vote(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    item: Item,
    settings: VotingSettings,
    seed: int,
    **thoughts: Any,
) -> dict[str, Any]:
    """Ask one question several times, all votes in one batch.

    Args:
        model: speaks, with thoughts or without.
        tokenizer: pads on the left.
        task: of the item.
        item: the question.
        settings: how it is put.
        seed: the question's own draws follow from it and from its index.
        thoughts: further arguments of `generate`.
    """
    gold = right_answer(task, item)
    torch.manual_seed(mixed_seed(seed, item.index))
    watch = Stopwatch(model.device)
    asked = f"Q: {item.question}{settings.prompt}"
    how = {**text_settings(model, tokenizer, settings.temperature), **thoughts}

    worked = _go_on(
        model, tokenizer, [asked] * settings.n_votes, settings.max_new_tokens, stop_strings=list(STOPS), **how
    )
    texts = [f"{asked}{_cut(text)}".rstrip() + settings.cut_over for text in worked]
    answers = _go_on(model, tokenizer, texts, settings.answer_tokens, **how)
    votes = [extractor(task)(answer) for answer in answers]
    answer = majority(votes)
    return {
        "index": item.index,
        "item": digest(item),
        "gold": gold,
        "answer": answer,
        "right": answer == gold,
        "votes": votes,
        "texts": [text[len(asked) :] + answer for text, answer in zip(texts, answers, strict=True)],
        "seconds": round(watch.seconds, 3),
    }


def _go_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], n_new: int, **how: Any
) -> list[str]:
    """What the model writes after each text: so many tokens at most."""
    prompts = {"input_ids": [prompt_ids(tokenizer, text) for text in texts]}
    encoded = tokenizer.pad(prompts, return_tensors="pt", padding_side="left")
    n_tokens = encoded["input_ids"].shape[1]
    rows = model.generate(
        encoded["input_ids"].to(model.device),
        attention_mask=encoded["attention_mask"].to(model.device),
        max_new_tokens=n_new,
        tokenizer=tokenizer,
        **how,
    )
    return [text_after(tokenizer, row, n_tokens) for row in rows.tolist()]


def _cut(text: str) -> str:
    """A worked answer up to where another question begins."""
    return text[: min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))]


LINE: dict[str, Any] = {
    "index": int,
    "item": str,
    "gold": str,
    "answer": str | None,
    "right": bool,
    "votes": list,
    "texts": list,
    "seconds": int | float,
}
"""what is written about a question, and of which type each is"""
_LINE_BEGINS = b'{"index": '


class Ledger:
    """Finished answers, a JSON line each, on disk before the next question is asked.

    Several processes write a file each, NAME.rank-N.jsonl beside NAME.jsonl, which are made one when all are done, or
    when a ledger is opened the next time.

    Args:
        path: the file; what lies in it is kept.
        processes: which share the questions; each must open it.
    """

    def __init__(self, path: Path, processes: Processes = ALONE) -> None:
        self.path = path
        self.processes = processes
        self.answers: dict[int, dict[str, Any]] = {}
        """by the question's index"""
        if self.processes.is_first:
            for file in (path, *self._parts()):
                self.answers |= {answer["index"]: answer for answer in self._read(file)}
            self._make_one()
        self.answers = self.processes.of_first(self.answers)

    @property
    def own_path(self) -> Path:
        """Where this process writes."""
        rank, n = self.processes.rank, self.processes.n
        return self.path if n == 1 else self.path.with_name(f"{self.path.stem}.rank-{rank}{self.path.suffix}")

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}.rank-*{self.path.suffix}"))

    def _make_one(self) -> None:
        if parts := self._parts():
            write_whole(self.path, "".join(_line(self.answers[index]) for index in sorted(self.answers)))
        for path in parts:
            path.unlink()

    def gather(self) -> None:
        """Let every process have the answers of all, in one file; every process must call it."""
        for answers in self.processes.gathered(self.answers):
            self.answers |= answers
        if self.processes.is_first:
            self._make_one()

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        """What is there. A last line that a kill has torn is taken out of the file, once the others were read.

        Raises:
            CheckpointError: another line is none of ours.
        """
        if not path.is_file():
            return
        *lines, last = path.read_bytes().split(b"\n")
        is_torn = _LINE_BEGINS.startswith(last[: len(_LINE_BEGINS)]) and not _is_json(last)
        for number, line in enumerate([*lines, *([last] if last and not is_torn else [])], start=1):
            try:
                answer = json.loads(line)
                if wrong := [name for name, kind in LINE.items() if not isinstance(answer[name], kind)]:
                    raise TypeError(*wrong)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise CheckpointError(f"line {number} of {path} is no answer; take that file away") from error
            yield answer
        if last:
            with path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines))
                if not is_torn:
                    file.seek(0, os.SEEK_END)
                    file.write(last + b"\n")

    def add(self, answer: dict[str, Any]) -> None:
        """Write an answer, and see to it that it is on disk."""
        with self.own_path.open("ab") as file:
            file.write(_line(answer).encode())
            file.flush()
            os.fsync(file.fileno())
        self.answers[answer["index"]] = answer


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _line(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"


def vote_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    items: list[Item],
    settings: VotingSettings,
    ledger: Ledger,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
    **thoughts: Any,
) -> list[dict[str, Any]]:
    """Ask each question that has not been answered yet; the answers to all of them, in the dataset's order.

    The ledger's processes share the questions.

    Raises:
        CheckpointError: an answer that is there is to another question.
    """
    answers = ledger.answers
    for item in items:
        if item.index in answers and answers[item.index]["item"] != digest(item):
            raise CheckpointError(
                f"{ledger.path} holds an answer to another question {item.index + 1} than the data have now; give the "
                "old data, another output_dir, or --overwrite"
            )
    asked = [item for item in items if item.index not in answers]
    for item in asked[ledger.processes.rank :: ledger.processes.n]:
        ledger.add(vote(model, tokenizer, task, item, settings, seed, **thoughts))
        if progress is not None:
            progress(len(answers), sum(answer["right"] for answer in answers.values()) / len(answers))
    ledger.gather()
    return [ledger.answers[item.index] for item in items]
