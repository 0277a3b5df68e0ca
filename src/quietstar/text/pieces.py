"""What each token adds to a text. A character may take several tokens; until it is whole they add nothing."""

import codecs
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""what tokenizers write for bytes that are no whole character"""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""what SentencePiece writes for a space"""
LONGEST = 8
"""tokens after which what ends in UNFINISHED is taken as it is: no character has more bytes than four"""


class Pieces:
    """Turns tokens into pieces of text, one after the other; joined, they are the text.

    A token is decoded beside those before it, as alone it may lose the space in front of it; and beside few of them,
    so that the time does not grow with the text.

    Args:
        tokenizer: turns tokens into text.
        before: tokens that stand before the first one.
        skip_special_tokens: whether special tokens add nothing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, before: Iterable[int] = (), *, skip_special_tokens: bool = False
    ) -> None:
        self.tokenizer, self.skip = tokenizer, skip_special_tokens
        self.known, self.waiting = self._cut(list(before))
        """the last tokens whose text is out already, from the beginning of a character on; and those whose is not"""

    def _cut(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """The last tokens that are whole characters, and what is left of a character at the end."""
        left = next((n for n in (1, 2, 3) if not self._is_cut(ids, n)), 0) if self._ends_unfinished(ids) else 0
        whole = ids[: len(ids) - left]
        for n in range(LONGEST, 2 * LONGEST):
            if not self._decode(whole[-n:]).startswith(UNFINISHED):  # a window that begins within a character
                return whole[-n:], ids[len(ids) - left :]
        return whole[-LONGEST:], ids[len(ids) - left :]

    def _is_cut(self, ids: list[int], n: int) -> bool:
        return self._decode(ids[: len(ids) - n][-2 * LONGEST :]).endswith(UNFINISHED)

    def _ends_unfinished(self, ids: list[int]) -> bool:
        """Whether a character is not whole at the end: a text may also hold what tokenizers write for that."""
        mark = self.tokenizer(UNFINISHED, add_special_tokens=False)["input_ids"][-3:]
        return self._is_cut(ids, 0) and ids[-len(mark) :] != mark

    def add(self, token: int) -> str:
        """The text that a token completes; empty while a character is not whole."""
        self.waiting.append(token)
        text = self._text()
        if text.endswith(UNFINISHED) and len(self.waiting) < LONGEST:
            return ""
        return self._out(text)

    def rest(self) -> str:
        """What is left at the end: a character that never became whole."""
        return self._out(self._text())

    def _text(self) -> str:
        return self._decode(self.known + self.waiting)[len(self._decode(self.known)) :]

    def _out(self, text: str) -> str:
        # what was put out last is what the next token is decoded beside: no longer, as bytes that follow each other are
        # one character or none, wherever they are cut
        self.known, self.waiting = self.waiting if text else self.known + self.waiting, []
        return text

    def _decode(self, ids: list[int]) -> str:
        return decoded(self.tokenizer, ids, skip_special_tokens=self.skip)


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The piece of text that each token adds, special tokens included; joined they are the text."""
    pieces = Pieces(tokenizer)
    found = [pieces.add(token) for token in ids]
    if found:
        found[-1] += pieces.rest()
    return found


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool = False) -> str:
    """The text of tokens as it is: some tokenizers would else take spaces out in front of dots."""
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token alone, with the space in front of it; bytes that are no whole character as <0xF0>."""
    text = decoded(tokenizer, [token])
    name = str(tokenizer.convert_ids_to_tokens(token) or "")
    if not text or UNFINISHED in text:
        return _of_bytes(name) or name
    return f" {text}" if name.startswith(SPACE) and not text.startswith(" ") else text


def _of_bytes(name: str) -> str:
    """A byte-level tokenizer's name of a token, whose characters stand for bytes; empty where it is none."""
    try:
        each_byte = bytes(_BYTES[character] for character in name)
    except KeyError:
        return ""
    return each_byte.decode("utf-8", errors=_AS_HEXADECIMAL)


def _hexadecimal(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


_AS_HEXADECIMAL = "quietstar.hexadecimal"
codecs.register_error(_AS_HEXADECIMAL, _hexadecimal)
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
