"""Tokenizer, config and generation config have the special tokens that the file names, and no others."""

import logging

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from quietstar.base.gguf.header import read_header
from quietstar.base.gguf.tokens import corrected
from quietstar.base.loading import load_base, load_tokenizer
from quietstar.errors import CheckpointError
from tests.tiny_gguf import CONTROL, WORDS, reference_tokenizer, tiny_llama, write_gguf

TEXTS = ["ab abba ab", "  two\n\nlines é 日本", "</s> ab<s>", "x"]
EOS = "tokenizer.ggml.eos_token_id"


def test_texts_are_the_tokens_that_they_were(file, tmp_path):
    ours, reference = load_tokenizer(file), reference_tokenizer()
    ours.save_pretrained(tmp_path)
    for tokenizer in (ours, load_tokenizer(tmp_path)):
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert ids == reference(text)["input_ids"]
            assert tokenizer.decode(ids) == text
        for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
            assert getattr(tokenizer, name) == getattr(reference, name), name


def test_no_token_lies_behind_the_embeddings(file):
    """transformers' class for such vocabularies adds <|endoftext|> to one that lacks it."""
    assert max(load_tokenizer(file).get_vocab().values()) < len(WORDS)


@pytest.mark.parametrize("id", [2, 1, 7])
def test_eos_is_the_files_everywhere(tmp_path, id):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {EOS: id})
    base_lm = load_base(file)
    assert load_tokenizer(file).eos_token_id == id
    assert base_lm.config.eos_token_id == base_lm.generation_config.eos_token_id == id


def test_a_file_that_names_no_eos(tmp_path, caplog):
    """The config's class has a default id, which is an ordinary token of this vocabulary."""
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {EOS: None})
    with caplog.at_level(logging.WARNING, "quietstar"):
        base_lm = load_base(file)
    assert base_lm.config.eos_token_id is None
    assert base_lm.generation_config.eos_token_id is None
    assert load_tokenizer(file).eos_token_id is None
    warning = "has no eos token, but transformers' config of its family has 2: using the file's"
    assert any(warning in record.message for record in caplog.records)


def test_generation_ends_where_a_turn_ends(tmp_path):
    """A chat model has an end-of-turn token besides eos, which llama.cpp respects."""
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {"tokenizer.ggml.eot_token_id": 7})
    assert load_base(file).generation_config.eos_token_id == [2, 7]
    assert load_tokenizer(file).eos_token_id == 2


@pytest.mark.parametrize("name", ["bos", "eos", "unknown", "padding", "eot"])
@pytest.mark.parametrize("id", [len(WORDS), 10**9, "two"])
def test_an_id_outside_the_vocabulary(tmp_path, name, id):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {f"tokenizer.ggml.{name}_token_id": id})
    for read in (load_base, load_tokenizer):
        with pytest.raises(CheckpointError, match=f"has {len(WORDS)} tokens, but token .*{id}.* as "):
            read(file)


@pytest.mark.parametrize("begins", [True, False])
def test_texts_begin_with_bos_where_the_file_says_so(tmp_path, begins):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {"tokenizer.ggml.add_bos_token": begins})
    assert (load_tokenizer(file)("ab")["input_ids"][0] == 1) is begins


def test_another_tokenizer_next_to_the_file(tmp_path):
    """transformers loads a tokenizer.json next to the file."""
    file = write_gguf(tmp_path / "m.gguf", tiny_llama())
    words = {word: id for id, word in enumerate([*WORDS[3:6], *WORDS[:3], *WORDS[6:]])}
    Tokenizer(models.BPE(vocab=words, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="move the file into a folder of its own"):
        load_tokenizer(file)


def test_special_tokens_that_the_tokenizer_does_not_know(tmp_path, caplog):
    """transformers splits a token that has characters outside the byte-level vocabulary."""
    words = [*WORDS[:-1], "<→end→>"]
    types = [CONTROL] * 3 + [1] * (len(words) - 4) + [CONTROL]
    fields = {"tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": types}
    header = read_header(write_gguf(tmp_path / "m.gguf", tiny_llama(), fields))
    with caplog.at_level(logging.WARNING, "quietstar"):
        corrected(reference_tokenizer(), header)
    assert "has special tokens (1, first '<→end→>') that transformers' tokenizer does not know" in caplog.text


def test_tokens_that_are_never_cut(tmp_path, caplog):
    """Some versions of transformers do not add user-defined tokens."""
    words = [*WORDS, "<think>", "<|end|>"]
    types = [CONTROL] * 3 + [1] * (len(WORDS) - 3) + [4, CONTROL]
    fields = {"tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": types, "llama.vocab_size": len(words)}
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(vocab_size=len(words)), fields)
    vocabulary = {word: id for id, word in enumerate(words)}
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])))
    with caplog.at_level(logging.WARNING, "quietstar"):
        tokenizers = [load_tokenizer(file), corrected(bare, read_header(file))]
    for tokenizer in tokenizers:
        ids = tokenizer("ab<think><|end|>", add_special_tokens=False)["input_ids"]
        assert ids[-2:] == [len(WORDS), len(WORDS) + 1]
        assert tokenizer.decode(ids[-2:], skip_special_tokens=True) == "<think>"
    assert "does not know, and splits" not in caplog.text


@pytest.mark.parametrize(("template", "warned"), [("<s>{{ m }}</s>", False), ("{{ eos_token }}", False), ("ab", True)])
def test_a_chat_template_that_ends_no_answer(tmp_path, caplog, template, warned):
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), {"tokenizer.chat_template": template})
    with caplog.at_level(logging.WARNING, "quietstar"):
        tokenizer = load_tokenizer(file)
    assert tokenizer.chat_template == template
    assert ("its chat template contains none of the tokens at which generation ends ('</s>')" in caplog.text) is warned


def test_a_file_without_a_tokenizer(tmp_path):
    fields = {
        name: None for name in read_header(write_gguf(tmp_path / "m.gguf", tiny_llama())).fields if "tokenizer" in name
    }
    file = write_gguf(tmp_path / "n.gguf", tiny_llama(), fields)
    assert load_tokenizer(file) is None
