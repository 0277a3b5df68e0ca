"""The text of tokens as they come: whole characters only, up to a stop string."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from quietstar.text.pieces import Pieces


class StoppingText:
    """Turns the tokens after a prompt into pieces of text that will not change any more.

    Text that may turn out to begin a stop string is held back; a stop string is not returned, nor what follows it.

    Args:
        tokenizer: turns tokens into text.
        prompt_ids: what stands before; its text is not returned.
        stop: strings that end the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.pieces = Pieces(tokenizer, prompt_ids, skip_special_tokens=True)
        self.stop = stop
        self.held = ""
        self.stopped = False
        """whether a stop string was met"""

    def add(self, token: int) -> str:
        """The text that a token lets out."""
        return self._release(self.pieces.add(token), is_last=False)

    def rest(self) -> str:
        """What is left when no token follows."""
        return "" if self.stopped else self._release(self.pieces.rest(), is_last=True)

    def _release(self, fresh: str, is_last: bool) -> str:
        text, self.held = self.held + fresh, ""
        if met := [at for stop in self.stop if (at := text.find(stop)) >= 0]:
            self.stopped = True
            return text[: min(met)]
        if is_last:
            return text
        n_held = max((_begun(text, stop) for stop in self.stop), default=0)
        released, self.held = text[: len(text) - n_held], text[len(text) - n_held :]
        return released


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string, which is not whole there."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def one_line(text: str) -> str:
    """A thought's text with its line breaks shown, so that thoughts can stand one in a line."""
    return _BREAK.sub("⏎", text)


_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""where str.splitlines breaks"""
