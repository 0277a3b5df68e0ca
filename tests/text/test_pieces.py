"""Pieces, joined, are the text, however tokens split it; each comes as soon as it is complete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from quietstar.text.pieces import Pieces, one_line, pieces_of, token_text
from tests.tiny_tokenizer import byte_tokenizer

HOSTILE = "a<b> \u202e\u2066 👩‍👩‍👧 \x00 日本 e\u0301\n\t  end"


def llama_like() -> PreTrainedTokenizerFast:
    """A tokenizer with SentencePiece's spaces, unknown characters as bytes, and no leading space when decoding."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "▁a", "▁b"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[("▁", "a"), ("▁", "b")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"bytes": byte_tokenizer(), "llama": llama_like()}
BOTH = pytest.mark.parametrize("name", TOKENIZERS)


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@BOTH
@given(text=st.text(max_size=40))
def test_pieces_join_to_the_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, text)
    pieces = pieces_of(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@BOTH
def test_a_character_comes_with_its_last_token(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, "a👩b")
    pieces = pieces_of(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["a", "👩", "b"]
    assert pieces[-2:] == ["👩", "b"]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@BOTH
def test_hostile_text_survives(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert "".join(pieces_of(tokenizer, ids_of(tokenizer, HOSTILE))) == HOSTILE


@BOTH
def test_what_never_becomes_whole_is_shown_at_the_end(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, "a👩")[:-1]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[-1]
    assert pieces[-2] == ""


@BOTH
@given(text=st.text(alphabet="ab👩 é", min_size=2, max_size=30), data=st.data())
def test_going_on_from_a_text_adds_what_the_whole_has_more(name: str, text: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    first = data.draw(st.integers(1, len(text) - 1))
    before = ids_of(tokenizer, text[:first])
    ids = ids_of(tokenizer, text)
    if ids[: len(before)] != before:
        return  # the tokenizer splits the two texts differently
    pieces = Pieces(tokenizer, before)
    added = "".join([pieces.add(token) for token in ids[len(before) :]]) + pieces.rest()
    assert tokenizer.decode(before) + added == tokenizer.decode(ids)


@BOTH
@pytest.mark.parametrize("prompt", ["a\ufffdbc", "a\ufffd", "a👩"])
def test_nothing_of_what_stands_before_is_said_again(name: str, prompt: str) -> None:
    """Even with the replacement character that tokenizers write for incomplete ones."""
    tokenizer = TOKENIZERS[name]
    pieces = Pieces(tokenizer, ids_of(tokenizer, prompt))
    assert pieces.add(ids_of(tokenizer, "c")[-1]) == "c"


@BOTH
def test_a_character_that_begins_before_becomes_whole(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, "ab👩c")
    pieces = Pieces(tokenizer, ids[:-2])
    assert [pieces.add(token) for token in ids[-2:]] == ["👩", "c"]


@BOTH
def test_long_broken_bytes_do_not_hold_everything_back(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    half = ids_of(tokenizer, "a👩")[-2:-1] * 50
    pieces = pieces_of(tokenizer, half)
    assert "".join(pieces) == tokenizer.decode(half)
    assert any(pieces[:20])


def test_special_tokens_are_left_out_on_request() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = [*ids_of(tokenizer, "ab"), tokenizer.eos_token_id, *ids_of(tokenizer, "c")]
    pieces = Pieces(tokenizer, skip_special_tokens=True)
    assert [pieces.add(token) for token in ids] == ["a", "b", "", "c"]
    assert "".join(pieces_of(tokenizer, ids)) == "ab</s>c"


def test_a_token_alone() -> None:
    bytes_, llama = TOKENIZERS["bytes"], TOKENIZERS["llama"]
    assert token_text(bytes_, ids_of(bytes_, "a")[0]) == "a"
    assert token_text(bytes_, ids_of(bytes_, " ")[0]) == " "
    assert token_text(bytes_, ids_of(bytes_, "👩")[0]) == "<0xF0>"
    assert token_text(llama, llama.convert_tokens_to_ids("▁a")) == " a"
    assert token_text(llama, llama.convert_tokens_to_ids("<0xF0>")) == "<0xF0>"
    assert token_text(bytes_, bytes_.eos_token_id) == "</s>"


@pytest.mark.parametrize("between", ["\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_thought_is_one_line(between: str) -> None:
    """For every kind of line break."""
    assert one_line(f"a{between}b{between}") == "a⏎b⏎"
    assert len(one_line(f"a{between}b").splitlines()) == 1
