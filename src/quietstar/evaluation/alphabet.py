"""Which tokens an answer is made of: the alphabet over which its probability is renormalised."""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from quietstar.errors import SettingsError
from quietstar.evaluation.tasks import LETTERS, MARKER

SPACES = {"▁": " ", "Ġ": " "}
"""what tokenizers write for a space"""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Tokens of answers, and of the line's end after them."""

    ids: tuple[int, ...]
    """rising"""
    note: str = ""
    """what a reader of the result should know about it"""


def digits(tokenizer: PreTrainedTokenizerBase) -> Alphabet:
    """Every token that is made of digits only, a space before them allowed, and the line's end.

    With a tokenizer that writes digit by digit these are the ten digits; with one that merges digits it is told so.
    """
    wanted = re.compile(r" ?[0-9]+")
    # of words alone: a piece such as <0x31>, a byte of another character, is no digit
    pieces = {id: _text(piece) for piece, id in tokenizer.get_vocab().items()}
    found = sorted(id for id, text in pieces.items() if wanted.fullmatch(text))
    is_merged = any(len(pieces[id].strip()) > 1 for id in found)
    note = f"the tokenizer merges digits: the alphabet is all {len(found)} tokens of digits" if is_merged else ""
    return Alphabet(ids=tuple(sorted({*found, end_of_line(tokenizer, " 1")})), note=note)


def letters(tokenizer: PreTrainedTokenizerBase) -> Alphabet:
    """The first letters of the alphabet as they follow a space, and the line's end."""
    found = {end_of_line(tokenizer, " A")}
    for letter in LETTERS:
        found.add(_answer_tokens(tokenizer, f" {letter}")[-2])
    return Alphabet(ids=tuple(sorted(found)))


def end_of_line(tokenizer: PreTrainedTokenizerBase, answer: str) -> int:
    """The token that ends the line after an answer.

    Raises:
        SettingsError: it has none that is nothing else.
    """
    found = _answer_tokens(tokenizer, answer)[-1]
    if tokenizer.convert_ids_to_tokens(found) not in ("\n", "Ċ", "<0x0A>") and tokenizer.decode([found]) != "\n":
        raise SettingsError(
            f"the tokenizer ends a line after{answer} with {tokenizer.convert_ids_to_tokens(found)!r}, and direct "
            "tasks need a token that is a line's end alone; use --cot or --lm_eval with this model"
        )
    return found


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    ids = tokenizer(f"Q: x{MARKER}{answer}\n")["input_ids"]
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def _text(piece: str) -> str:
    return "".join(SPACES.get(character, character) for character in piece)
