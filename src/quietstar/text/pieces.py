"""The text that each token adds. A character may take several tokens; until it is complete they add nothing."""

import codecs
import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""what tokenizers write for bytes that do not make up a character"""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""how SentencePiece writes a space"""
LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""line breaks of str.splitlines"""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
LONGEST = 8
"""tokens after which text that ends in UNFINISHED is taken as it is: no character has more than four bytes"""


class Pieces:
    """Decodes tokens into pieces of text, one at a time; joined, the pieces are the text.

    A token is decoded together with those before it, since alone it may lose its leading space; and with only a few of
    them, so that the time does not grow with the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, before: Iterable[int] = (), *, skip_special_tokens: bool = False
    ) -> None:
        self.tokenizer, self.skip = tokenizer, skip_special_tokens
        self.known, self.waiting = self._cut(list(before))
        """the last tokens whose text was returned already, beginning at a character's start; and those still to come"""

    def _cut(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Return the last tokens that are complete characters, and the tokens of an incomplete one at the end."""
        left = next((n for n in (1, 2, 3) if not self._is_cut(ids, n)), 0) if self._ends_unfinished(ids) else 0
        whole = ids[: len(ids) - left]
        for n in range(LONGEST, 2 * LONGEST):
            if not self._decode(whole[-n:]).startswith(UNFINISHED):  # the window begins at a character's start
                return whole[-n:], ids[len(ids) - left :]
        return whole[-LONGEST:], ids[len(ids) - left :]

    def _is_cut(self, ids: list[int], n: int) -> bool:
        return self._decode(ids[: len(ids) - n][-2 * LONGEST :]).endswith(UNFINISHED)

    def _ends_unfinished(self, ids: list[int]) -> bool:
        """Whether the last character is incomplete; a text may also contain UNFINISHED itself."""
        mark = self.tokenizer(UNFINISHED, add_special_tokens=False)["input_ids"][-3:]
        return self._is_cut(ids, 0) and ids[-len(mark) :] != mark

    def add(self, token: int) -> str:
        """Return the text that a token completes; empty while a character is incomplete."""
        self.waiting.append(token)
        text = self._text()
        if text.endswith(UNFINISHED) and len(self.waiting) < LONGEST:
            return ""
        return self._out(text)

    def rest(self) -> str:
        """Return what is left at the end: a character that was never completed."""
        return self._out(self._text())

    def _text(self) -> str:
        return self._decode(self.known + self.waiting)[len(self._decode(self.known)) :]

    def _out(self, text: str) -> str:
        # the next token is decoded together with the tokens returned last, and no more: however adjacent bytes are
        # split, they make up one character or none
        self.known, self.waiting = self.waiting if text else self.known + self.waiting, []
        return text

    def _decode(self, ids: list[int]) -> str:
        return decoded(self.tokenizer, ids, skip_special_tokens=self.skip)


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Return the piece of text that each token adds, special tokens included; joined, they are the text."""
    pieces = Pieces(tokenizer)
    found = [pieces.add(token) for token in ids]
    if found:
        found[-1] += pieces.rest()
    return found


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool = False) -> str:
    """Return the text of tokens unchanged: by default, some tokenizers remove spaces before full stops."""
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of one token with its leading space; bytes that do not make up a character as <0xF0>."""
    text = decoded(tokenizer, [token])
    name = str(tokenizer.convert_ids_to_tokens(token) or "")
    if not text or UNFINISHED in text:
        return _of_bytes(name) or name
    return f" {text}" if name.startswith(SPACE) and not text.startswith(" ") else text


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """Return the bytes of one token's text in UTF-8, which may be a part of a character."""
    text, name = token_text(tokenizer, token), str(tokenizer.convert_ids_to_tokens(token) or "")
    if _BYTE.fullmatch(name):  # how SentencePiece writes a byte that no token has
        return bytes([int(name[3:5], 16)])
    if UNFINISHED in decoded(tokenizer, [token]) and all(character in _BYTES for character in name):
        return bytes(_BYTES[character] for character in name)
    return text.encode()


def one_line(text: str) -> str:
    """Return a thought's text with its line breaks made visible, so that it fits on one line."""
    return LINE_BREAK.sub("⏎", text)


def _of_bytes(name: str) -> str:
    """Decode a byte-level tokenizer's name of a token, in which characters stand for bytes; empty for other names."""
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
