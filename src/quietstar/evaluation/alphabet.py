"""The alphabet of a task: the tokens over which an answer's probability is renormalised."""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from quietstar.errors import SettingsError
from quietstar.evaluation.tasks import LETTERS, MARKER

SPACES = {"▁": " ", "Ġ": " "}
"""how tokenizers write a space"""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The tokens of answers, and the newline that ends them."""

    ids: tuple[int, ...]
    """in ascending order"""
    note: str = ""
    """a remark for the report"""


def digits(tokenizer: PreTrainedTokenizerBase) -> Alphabet:
    """Return all tokens of digits, with or without a leading space, and the newline.

    With a tokenizer that splits numbers into digits these are the ten digits; if it merges digits, a note says so.
    """
    wanted = re.compile(r" ?[0-9]+")
    # from the pieces, not from decoded text: a byte token such as <0x31> is not a digit
    pieces = {id: _text(piece) for piece, id in tokenizer.get_vocab().items()}
    found = sorted(id for id, text in pieces.items() if wanted.fullmatch(text))
    is_merged = any(len(pieces[id].strip()) > 1 for id in found)
    note = f"the tokenizer merges digits: the alphabet is all {len(found)} tokens of digits" if is_merged else ""
    return Alphabet(ids=tuple(sorted({*found, end_of_line(tokenizer, " 1")})), note=note)


def letters(tokenizer: PreTrainedTokenizerBase) -> Alphabet:
    """Return the tokens of the choices' letters after a space, and the newline."""
    found = {end_of_line(tokenizer, " A")}
    for letter in LETTERS:
        found.add(_answer_tokens(tokenizer, f" {letter}")[-2])
    return Alphabet(ids=tuple(sorted(found)))


def end_of_line(tokenizer: PreTrainedTokenizerBase, answer: str) -> int:
    """Return the newline token after an answer.

    Raises:
        SettingsError: the tokenizer merges the newline with something else.
    """
    found = _answer_tokens(tokenizer, answer)[-1]
    if tokenizer.convert_ids_to_tokens(found) not in ("\n", "Ċ", "<0x0A>") and tokenizer.decode([found]) != "\n":
        raise SettingsError(
            f"the tokenizer ends a line after{answer} with {tokenizer.convert_ids_to_tokens(found)!r}, but direct "
            "tasks need a newline token of its own; use --cot or --lm_eval with this model"
        )
    return found


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    ids = tokenizer(f"Q: x{MARKER}{answer}\n")["input_ids"]
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def _text(piece: str) -> str:
    return "".join(SPACES.get(character, character) for character in piece)
