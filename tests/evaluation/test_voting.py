"""Chain of thought with a majority vote: answers found in texts, votes counted, and nothing lost by a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import decoders, processors

from quietstar.errors import CheckpointError, DataError
from quietstar.evaluation.ledger import Ledger
from quietstar.evaluation.tasks import TASKS, Item
from quietstar.evaluation.voting import (
    VotingSettings,
    _cut,
    check_context,
    extract_letter,
    extract_number,
    majority,
    vote,
    vote_on,
)
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

NUMBERS = {
    " 18.": "18",
    " $1,234,567 in all": "1234567",
    " -5 degrees": "-5",
    " -1,250.50": "-1250.5",
    " 3.0": "3",
    " 0.50 cents": "0.5",
    "": None,
    " none at all": None,
    " 12, 13 and 14": "12",
    " 1,2,3": "123",
    " 5-3=2": "5",
    " -0": "0",
    " 100": "100",
    " 7th": "7",
    " .5": "0.5",
    " 007": "7",
    " 123456789012345678901234567890123": "123456789012345678901234567890123",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_the_first_number_of_an_answer(text: str) -> None:
    """With commas, a minus sign, a fraction, or without any number."""
    assert extract_number(text) == NUMBERS[text]


@pytest.mark.parametrize(
    ("text", "letter"),
    [(" B", "B"), (" (C) there", "C"), (" Apples, so D.", "D"), (" none", None), ("", None), ("I'D", None)],
)
def test_the_letter_of_an_answer(text: str, letter: str | None) -> None:
    """It is a word of its own."""
    assert extract_letter(text) == letter


def test_majorities() -> None:
    """Votes without an answer do not count; in a tie the first one wins."""
    assert majority(["4", "5", "4", None, None, None]) == "4"
    assert majority(["5", "4", "4", "5"]) == "5"
    assert majority([None, "1"]) == "1"
    assert majority([None, None]) is None


def test_a_worked_answer_ends_where_another_question_begins() -> None:
    """Only text that the model wrote is cut; the prompt's own question stays."""
    assert _cut(" so 4.\nQ: and?") == " so 4.\n"
    assert _cut(" so 4.\n\n\nMore Q:") == " so 4."
    assert _cut(" so 4.") == " so 4."


def asked(**how: Any) -> dict[str, Any]:
    """Return a question for a tiny random model."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    model = tiny_model(n_ahead=4, base={"vocab_size": len(tokenizer), "max_position_embeddings": 512})
    settings = VotingSettings(n_votes=3, max_new_tokens=6, answer_tokens=4, **how)
    return {"model": model, "tokenizer": tokenizer, "task": TASKS["gsm8k"], "settings": settings, "seed": 1}


ITEMS = [Item(0, "2 + 2?", " 4"), Item(1, "3 + 3?", " 6"), Item(2, "4 + 4?", " 8")]


def test_a_question_is_put_as_the_released_script_does() -> None:
    """Reasoning after the prompt, then the text before the answer, and a vote from each."""
    found = vote(item=ITEMS[0], **asked(prompt="\nA: Think.", cut_over="\nSo it is"))
    assert found["gold"] == "4"
    assert len(found["votes"]) == len(found["texts"]) == 3
    assert all("\nSo it is" in text for text in found["texts"])
    assert len(set(found["texts"])) > 1
    assert found["right"] == (found["answer"] == "4")
    defaults = VotingSettings()
    assert (defaults.n_votes, defaults.temperature, defaults.max_new_tokens, defaults.answer_tokens) == (
        8,
        0.9,
        384,
        12,
    )
    assert defaults.prompt == "\nA: Let's think step by step."
    assert defaults.cut_over == "\nTherefore, the answer (arabic numerals) is"


def test_votes_at_temperature_zero_are_all_alike() -> None:
    """The answers are greedy, too: batched equals single."""
    found = vote(item=ITEMS[0], **asked(temperature=0.0))
    assert len(set(found["texts"])) == 1


def test_all_votes_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question takes two calls of generate: for the reasoning, and for the answers."""
    how, sizes = asked(), []
    right = type(how["model"]).generate

    def counting(self: Any, rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(len(rows))
        return right(self, rows, *args, **kwargs)

    monkeypatch.setattr(type(how["model"]), "generate", counting)
    vote(item=ITEMS[0], **how)
    assert sizes == [3, 3]


@pytest.mark.parametrize("killed_after", [0, 1, 2])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_resumes(killed_after: int, torn: bool, tmp_path: Path) -> None:
    """The answers equal those without a kill; no question is asked twice, except for an incomplete line."""
    whole = vote_on(items=ITEMS, ledger=Ledger(tmp_path / "whole.jsonl"), **asked())
    path = tmp_path / "killed.jsonl"
    vote_on(items=ITEMS[:killed_after], ledger=Ledger(path), **asked())
    if torn:
        with path.open("a") as file:
            file.write('{"index": 1, "gold": "')
    resumed = vote_on(items=ITEMS, ledger=Ledger(path), **asked())
    for line in [*whole, *resumed]:
        del line["seconds"]
    assert resumed == whole
    on_disk = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in on_disk] == [0, 1, 2]


def test_an_answer_is_on_disk_before_the_next_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the next question fails."""

    def failing(model: Any, tokenizer: Any, task: Any, item: Item, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if item.index == 2:
            raise KeyboardInterrupt
        return {"index": item.index, "right": True}

    monkeypatch.setattr("quietstar.evaluation.voting.vote", failing)
    with pytest.raises(KeyboardInterrupt):
        vote_on(items=ITEMS, ledger=Ledger(tmp_path / "a.jsonl"), **asked())
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_an_answer_belongs_to_its_question(tmp_path: Path) -> None:
    """Answers to other data under the same name are refused."""
    vote_on(items=ITEMS[:1], ledger=Ledger(tmp_path / "a.jsonl"), **asked())
    with pytest.raises(CheckpointError, match="question 1 that belongs to other data"):
        vote_on(items=[Item(0, "5 + 5?", " 10")], ledger=Ledger(tmp_path / "a.jsonl"), **asked())


def test_the_model_continues_its_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer whose decoder drops a leading space, and one that appends eos to every text."""
    tokenizer = byte_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    assert tokenizer("x")["input_ids"][-1] == 2
    assert tokenizer.decode(tokenizer(" x")["input_ids"], skip_special_tokens=True) == "x"
    prompts, how = [], {**asked(), "tokenizer": tokenizer}
    tokenizer.pad_token = "<unk>"
    written = tokenizer(" four apples")["input_ids"][:-1]

    def saying(rows: torch.Tensor, **_: Any) -> torch.Tensor:
        prompts.append(rows)
        return torch.cat([rows, torch.tensor([written] * len(rows))], dim=1)

    monkeypatch.setattr(how["model"], "generate", saying)
    found = vote(item=ITEMS[0], **how)
    assert not any((rows[:, -1] == 2).any() for rows in prompts)
    assert "step by step. four apples\nTherefore" in tokenizer.decode(prompts[1][0])
    assert found["texts"][0] == " four apples\nTherefore, the answer (arabic numerals) is four apples"


def test_invalid_questions_are_refused() -> None:
    """A question that exceeds the context, an item without an answer."""
    how = asked()
    with pytest.raises(DataError, match="context holds 508"):
        check_context(how["model"], how["tokenizer"], [Item(0, "x" * 600, " 4")], how["settings"])
    with pytest.raises(DataError, match="has no gsm8k answer"):
        vote(item=Item(0, "x", " four"), **asked())
