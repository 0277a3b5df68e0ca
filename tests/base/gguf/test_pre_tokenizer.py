"""A tokenizer from a GGUF file splits texts as the file says, also after saving and loading."""

import logging

import pytest

from quietstar.base.loading import load_tokenizer
from tests.tiny_gguf import CONTROL, NORMAL, WORDS, tiny_llama, write_gguf

LOGGER = "quietstar.base.gguf.pre_tokenizer"
TEXT = "a  1234\n\n5 it's IT'S"
PIECES = {
    "gpt-2": ["a", "Ġ", "Ġ1234", "Ċ", "Ċ", "5", "Ġit", "'s", "ĠIT", "'", "S"],
    "smollm": ["a", "ĠĠ", "1", "2", "3", "4", "ĊĊ", "5", "Ġit", "'s", "ĠIT", "'", "S"],
    "llama-bpe": ["a", "Ġ", "Ġ", "123", "4", "ĊĊ", "5", "Ġit", "'s", "ĠIT", "'S"],
    "qwen2": ["a", "Ġ", "Ġ", "1", "2", "3", "4", "ĊĊ", "5", "Ġit", "'s", "ĠIT", "'S"],
}
"""the text as split by the rules of these published tokenizers"""


def pieces(tokenizer) -> list[str]:
    return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)]


@pytest.mark.parametrize("name", PIECES)
def test_texts_are_split_by_the_rule_that_the_file_names(tmp_path, caplog, name):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {"tokenizer.ggml.pre": name})
    with caplog.at_level(logging.WARNING, "quietstar"):
        tokenizer = load_tokenizer(file)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert pieces(tokenizer) == pieces(load_tokenizer(tmp_path / "saved")) == PIECES[name]
    assert not [record for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, "names no pre-tokenizer: using GPT-2's"),
        ("new-bpe", "has an unknown pre-tokenizer 'new-bpe': using GPT-2's"),
    ],
)
def test_an_unknown_rule_warns(tmp_path, caplog, name, words):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {"tokenizer.ggml.pre": name})
    with caplog.at_level(logging.WARNING, "quietstar"):
        tokenizer = load_tokenizer(file)
    assert pieces(tokenizer) == PIECES["gpt-2"]
    assert [words in record.message for record in caplog.records if record.name == LOGGER] == [True]


@pytest.mark.parametrize(("name", "is_kept"), [("llama-bpe", True), ("qwen2", False)])
def test_a_token_that_no_merges_produce_is_split_or_not(tmp_path, name, is_kept):
    """Llama 3 has such tokens."""
    words = [*WORDS, "baab"]
    fields = {
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * (len(words) - 3),
        "llama.vocab_size": len(words),
    }
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(vocab_size=len(words)), fields)
    ids = load_tokenizer(file)("baab", add_special_tokens=False)["input_ids"]
    assert (ids == [len(words) - 1]) is is_kept


@pytest.mark.parametrize(
    ("name", "says", "begins"), [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False)]
)
def test_texts_begin_with_bos_where_the_rules_models_do(tmp_path, name, says, begins):
    fields = {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": says}
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", tiny_llama(), fields))
    assert (tokenizer("ab")["input_ids"][0] == 1) is begins


@pytest.mark.parametrize("prefix", [None, True, False])
def test_a_text_begins_with_a_space_or_not_as_the_file_says(tmp_path, prefix):
    """In SentencePiece vocabularies."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁ab", "ab"]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [0.0] * 259 + [-5.0, -4.0, -3.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [2, CONTROL, CONTROL] + [6] * 256 + [NORMAL] * 5,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.add_space_prefix": prefix,
        "llama.vocab_size": len(words),
    }
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", tiny_llama(vocab_size=len(words)), fields))
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, load_tokenizer(tmp_path / "saved")):
        ids = each("ab ab", add_special_tokens=False)["input_ids"]
        assert each.convert_ids_to_tokens(ids) == [("ab" if prefix is False else "▁ab"), "▁ab"]
        assert each.decode(ids) == "ab ab"
