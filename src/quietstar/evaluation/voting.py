"""Chain of thought with a majority vote over several answers to each question.

The defaults are those of the released script. Each answer is written to disk at once, so that a killed run can resume.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.config import room_beside_thought
from quietstar.errors import CheckpointError, DataError
from quietstar.evaluation.ledger import Ledger
from quietstar.evaluation.scoring import Stopwatch
from quietstar.evaluation.tasks import Item, Task
from quietstar.inference.loading import prompt_ids, text_after
from quietstar.inference.text_settings import text_settings
from quietstar.runs.seeds import mixed_seed

STOPS = ("Q:", "\n\n\n")
"""end of the reasoning: the model has begun another question"""


@dataclass(frozen=True, slots=True)
class VotingSettings:
    """How a question is asked, and how its answer is found."""

    prompt: str = "\nA: Let's think step by step."
    cut_over: str = "\nTherefore, the answer (arabic numerals) is"
    n_votes: int = 8
    temperature: float = 0.9
    max_new_tokens: int = 384
    answer_tokens: int = 12


def extract_number(text: str) -> str | None:
    """Return the first number in a text, without its commas: `-1,250.50` gives -1250.5; None if there is none."""
    match = re.search(r"(-?)(\d*)(?:\.(\d+))?(?<=\d)", re.sub(r"(?<=\d),(?=\d)", "", text))
    if match is None:
        return None
    sign, whole, fraction = match.group(1), match.group(2).lstrip("0") or "0", (match.group(3) or "").rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return number if number == "0" else sign + number


def extract_letter(text: str) -> str | None:
    """Return the first of the letters A to E that is a word of its own; None if there is none."""
    match = re.search(r"(?<![A-Za-z'])[A-E](?![A-Za-z'])", text)
    return match.group() if match else None


def majority(votes: list[str | None]) -> str | None:
    """Return the most frequent vote, the first one in a tie; votes without an answer do not count."""
    counts = Counter(vote for vote in votes if vote is not None)
    return counts.most_common(1)[0][0] if counts else None


def extractor(task: Task) -> Callable[[str], str | None]:
    """Return the function that finds an answer to this task in a text."""
    return extract_number if task.numeric else extract_letter


def right_answer(task: Task, item: Item) -> str:
    """Return the answer that votes are compared with.

    Raises:
        DataError: the item has no such answer.
    """
    found = extractor(task)(item.answer)
    if found is None:
        raise DataError(f"item {item.index + 1} has no {task.name} answer, but {item.answer!r}; fix the file")
    return found


def digest(item: Item) -> str:
    """Return a hash that tells this item from others with the same index."""
    return hashlib.sha256(item.text.encode()).hexdigest()[:16]


def check_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[Item],
    settings: VotingSettings,
    n_ahead: int | None = None,
) -> None:
    """Raise DataError if a question, its reasoning, its answer and a thought may not fit into the model's context."""
    room = room_beside_thought(model.config, n_ahead)
    if tokenizer.pad_token_id is None:
        raise DataError("the tokenizer has no pad, eos or unk token to pad votes with; give it one")
    n_more = settings.max_new_tokens + len(prompt_ids(tokenizer, settings.cut_over)) + settings.answer_tokens
    for item in items:
        n_tokens = len(prompt_ids(tokenizer, f"Q: {item.question}{settings.prompt}"))
        if room is not None and n_tokens + n_more > room:
            raise DataError(
                f"question {item.index + 1} has {n_tokens} tokens and up to {n_more} follow, but beside a thought the "
                f"model's context holds {room}; give a smaller --cot_tokens, or remove that question"
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
    """Ask one question several times, all votes in one batch, and return the line to write to the ledger.

    The tokenizer pads on the left; the seed and the item's index determine what is sampled.
    """
    gold = right_answer(task, item)
    torch.manual_seed(mixed_seed(seed, item.index))
    watch = Stopwatch(model.device)
    prompt = f"Q: {item.question}{settings.prompt}"
    how = {**text_settings(model, tokenizer, settings.temperature), **thoughts}

    reasoning = _continue(
        model, tokenizer, [prompt] * settings.n_votes, settings.max_new_tokens, stop_strings=list(STOPS), **how
    )
    texts = [f"{prompt}{_cut(text)}".rstrip() + settings.cut_over for text in reasoning]
    answers = _continue(model, tokenizer, texts, settings.answer_tokens, **how)
    votes = [extractor(task)(answer) for answer in answers]
    answer = majority(votes)
    return {
        "index": item.index,
        "item": digest(item),
        "gold": gold,
        "answer": answer,
        "right": answer == gold,
        "votes": votes,
        "texts": [text[len(prompt) :] + answer for text, answer in zip(texts, answers, strict=True)],
        "seconds": round(watch.seconds, 3),
    }


def _continue(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], n_new: int, **how: Any
) -> list[str]:
    """Return up to n_new tokens of continuation of each text."""
    prompts = {"input_ids": [prompt_ids(tokenizer, text) for text in texts]}
    encoded = tokenizer.pad(prompts, return_tensors="pt", padding_side="left")
    n_tokens = encoded["input_ids"].shape[1]
    sequences = model.generate(
        encoded["input_ids"].to(model.device),
        attention_mask=encoded["attention_mask"].to(model.device),
        max_new_tokens=n_new,
        tokenizer=tokenizer,
        **how,
    )
    return [text_after(tokenizer, ids, n_tokens) for ids in sequences.tolist()]


def _cut(text: str) -> str:
    """Cut the text off where another question begins."""
    return text[: min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))]


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
    """Ask each question that has not been answered yet, and return all answers in the dataset's order.

    The ledger's processes share the questions.

    Raises:
        CheckpointError: the ledger has an answer to a different question.
    """
    answers = ledger.answers
    for item in items:
        if item.index in answers and answers[item.index]["item"] != digest(item):
            raise CheckpointError(
                f"{ledger.path} has an answer to question {item.index + 1} that belongs to other data; give that data, "
                "another output_dir, or --overwrite"
            )
    remaining = [item for item in items if item.index not in answers]
    for item in remaining[ledger.processes.rank :: ledger.processes.n]:
        ledger.add(vote(model, tokenizer, task, item, settings, seed, **thoughts))
        if progress is not None:
            progress(len(answers), sum(answer["right"] for answer in answers.values()) / len(answers))
    ledger.gather()
    return [ledger.answers[item.index] for item in items]
