"""Decodes tokens one at a time into complete characters, up to a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from quietstar.text.pieces import Pieces


class StoppingText:
    """Turns the tokens after a prompt into pieces of text that are final.

    Text that may be the beginning of a stop string is held back. Neither a stop string nor the text after it is
    returned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.pieces = Pieces(tokenizer, prompt_ids, skip_special_tokens=True)
        self.stop = stop
        self.held = ""
        self.n_decoded = 0
        """characters so far, with those held back and those after a stop string"""
        self.stopped = False
        """whether a stop string was found"""

    def add(self, token: int) -> str:
        """Add a token, and return the text that is now final."""
        return self._release(self.pieces.add(token), is_last=False)

    def rest(self) -> str:
        """Return the remaining text when no token follows."""
        return "" if self.stopped else self._release(self.pieces.rest(), is_last=True)

    def _release(self, fresh: str, is_last: bool) -> str:
        self.n_decoded += len(fresh)
        text, self.held = self.held + fresh, ""
        if met := [at for stop in self.stop if (at := text.find(stop)) >= 0]:
            self.stopped = True
            return text[: min(met)]
        if is_last:
            return text
        n_held = max((_overlap(text, stop) for stop in self.stop), default=0)
        released, self.held = text[: len(text) - n_held], text[len(text) - n_held :]
        return released


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop string, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
