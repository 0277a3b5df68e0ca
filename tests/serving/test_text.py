"""Decoding token by token: complete characters, and nothing of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from quietstar.serving.text import StoppingText
from tests.tiny_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def ids_of(text: str) -> list[int]:
    """A tokenizer with one token per byte."""
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def said(text: str, stop: tuple[str, ...], prompt: str = "") -> tuple[list[str], StoppingText]:
    """Return one piece per token until the text stops, and the rest."""
    stream = StoppingText(TOKENIZER, ids_of(prompt), stop)
    pieces = []
    for token in ids_of(text):
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.rest()], stream


@given(text=st.text(alphabet="abé😀\u202e\0 <", max_size=12), stop=st.lists(st.text("abé😀 ", min_size=1), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    """However the text is split into tokens; no piece ends within a character."""
    pieces, stream = said(text, tuple(stop), prompt="b")
    ends = [text.index(each) for each in stop if each in text]
    if len(stop) <= 1:
        assert "".join(pieces) == (text[: ends[0]] if ends else text)
    assert text.startswith("".join(pieces))
    assert stream.stopped == bool(ends)
    assert not any(UNFINISHED in piece for piece in pieces)


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    """It is released when it turns out not to be one, or at the end."""
    assert said("a##b", ("###",))[0] == ["a", "", "", "##b", ""]
    assert said("a##", ("###",))[0] == ["a", "", "", "##"]
    assert said("a###", ("###",))[0] == ["a", "", "", "", ""]
    assert said("aab", ("ab",))[0] == ["", "a", "", ""]


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    """Once, when no more tokens follow."""
    stream = StoppingText(TOKENIZER, [], ())
    assert [stream.add(token) for token in ids_of("😀")[:3]] == ["", "", ""]
    assert stream.rest() == UNFINISHED
