"""llama.cpp makes the same tokens of a text as the model's own tokenizer, or says where it does not."""

import io
import logging
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from quietstar.base.gguf.pre_tokenizer import DIGITS_AT_A_TIME, RULES
from quietstar.errors import UnsupportedModelError
from quietstar.interop.gguf.vocabulary import NAMES, tokenizer_fields
from quietstar.interop.gguf.write import write_gguf
from tests.interop.gguf.conftest import plain_model
from tests.llama_cpp import llama_cpp
from tests.tiny_gguf import reference_tokenizer
from tests.tiny_tokenizer import ascii_tokenizer, byte_tokenizer

CHARACTERS = "abcdefghij  \n\t.,'ABC123\u00e9\u6771\U0001f600"
PRE = "tokenizer.ggml.pre"


def some_texts(n: int = 60) -> list[str]:
    drawn = random.Random(0)
    return ["ab", "a  b", "\n\n", *("".join(drawn.choices(CHARACTERS, k=30)) for _ in range(n))]


def written(tmp_path, tokenizer, family="llama"):
    """A file with a tokenizer, and the model of its family around it."""
    model = plain_model(family, vocab_size=len(tokenizer))
    write_gguf(model, tokenizer, tmp_path / "m.gguf", dtype="float32", name="m")
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_is_known_by_what_it_does(name):
    tokenizer = ascii_tokenizer(RULES[name])
    tokenizer.backend_tokenizer.model.ignore_merges = name == "llama-bpe"
    assert tokenizer_fields(tokenizer, 200, [])[PRE] == name


@pytest.mark.parametrize("name", NAMES)
def test_byte_level_tokens_are_the_same(tmp_path, name):
    tokenizer = reference_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = RULES[name]
    tokenizer.backend_tokenizer.model.ignore_merges = name == "llama-bpe"
    with llama_cpp(written(tmp_path, tokenizer)) as loaded:
        for text in some_texts():
            assert loaded.tokens(text) == tokenizer(text)["input_ids"], text


def sentencepiece() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a model that SentencePiece has trained."""
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (extra: dev)")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text.replace("\n", " ") for text in some_texts(400)),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    trained = spm.SentencePieceProcessor(model_proto=model.getvalue())
    words = {trained.id_to_piece(id): id for id in range(len(trained))}
    return words, generate_merges(words, {word: trained.get_score(id) for word, id in words.items()})


@pytest.mark.parametrize(("family", "kind"), [("llama", LlamaTokenizer), ("gemma2", GemmaTokenizer)])
def test_tokens_of_sentencepiece_are_the_same(tmp_path, family, kind):
    vocabulary, merges = sentencepiece()
    tokenizer = kind(vocab=vocabulary, merges=merges)
    tokenizer.save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    with llama_cpp(written(tmp_path, tokenizer, family)) as loaded:
        texts = [text for text in some_texts() if family != "llama" or text[0] != " "]
        assert len(texts) > 40
        assert any(len(tokenizer.tokenize(text)) < len(text) - 8 for text in texts), "merges are in use"
        for text in texts:
            assert loaded.tokens(text) == tokenizer(text)["input_ids"], text


def test_a_space_that_llama_cpp_adds_is_told(caplog):
    """To a text that begins with one; transformers' Llama adds none."""
    vocabulary, merges = sentencepiece()
    with caplog.at_level(logging.WARNING, "quietstar"):
        fields = tokenizer_fields(LlamaTokenizer(vocab=vocabulary, merges=merges), 500, [])
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert "llama.cpp puts a space before every text" in caplog.text
    caplog.clear()
    fields = tokenizer_fields(GemmaTokenizer(vocab=vocabulary, merges=merges), 500, [])
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    assert not caplog.records


def test_special_tokens_and_types():
    tokenizer = ascii_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = "{{ messages[0].content }}</s>"
    n = len(tokenizer)
    fields = tokenizer_fields(tokenizer, n + 2, [2, 1])
    assert fields["tokenizer.ggml.tokens"][-3:] == ["<think>", f"[PAD{n}]", f"[PAD{n + 1}]"]
    assert fields["tokenizer.ggml.token_type"][:4] + fields["tokenizer.ggml.token_type"][-3:] == [3, 3, 3, 1, 4, 5, 5]
    assert fields["tokenizer.chat_template"] == "{{ messages[0].content }}</s>"
    named = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "unknown", "padding")}
    assert named == {"bos": 1, "eos": 2, "eot": 1, "unknown": 0, "padding": 2}
    assert not fields["tokenizer.ggml.add_bos_token"]


def test_several_templates_keep_their_names():
    tokenizer = ascii_tokenizer()
    tokenizer.chat_template = {"default": "a", "tools": "b"}
    fields = tokenizer_fields(tokenizer, 200, [])
    assert fields["tokenizer.chat_templates"] == ["tools"]
    assert (fields["tokenizer.chat_template"], fields["tokenizer.chat_template.tools"]) == ("a", "b")


def test_an_end_that_only_generation_knows_is_eos():
    tokenizer = ascii_tokenizer()
    tokenizer.eos_token = None
    assert tokenizer_fields(tokenizer, 200, [7])["tokenizer.ggml.eos_token_id"] == 7


def stripping() -> PreTrainedTokenizerFast:
    tokenizer = ascii_tokenizer()
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True)])
    return tokenizer


def composing() -> PreTrainedTokenizerFast:
    """As Qwen's."""
    tokenizer = ascii_tokenizer(RULES["qwen2"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def after_special() -> PreTrainedTokenizerFast:
    vocabulary, merges = sentencepiece()
    return LlamaTokenizer(vocab=vocabulary, merges=merges)


TOLD = {
    "spaces around a token": (stripping, [], "the tokenizer drops spaces around <x>, and llama.cpp does not"),
    "composed letters": (composing, [], "composes letters and their accents (NFC), and llama.cpp does not"),
    "no space after a special token": (after_special, [], "llama.cpp puts a space after every special token"),
    "four ends": (ascii_tokenizer, [2, 5, 6, 7], "a GGUF file names 3 tokens that end a text: not [7]"),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_llama_cpp_does_otherwise_is_told(caplog, what):
    make, ends, words = TOLD[what]
    with caplog.at_level(logging.WARNING, "quietstar"):
        tokenizer_fields(make(), 500, ends)
    assert words in caplog.text


def wordpiece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def lower() -> PreTrainedTokenizerFast:
    tokenizer = ascii_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def endless() -> PreTrainedTokenizerFast:
    tokenizer = ascii_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def with_marks() -> PreTrainedTokenizerFast:
    """Qwen 3.5's rule, in which a word contains combining marks."""
    rule = DIGITS_AT_A_TIME.replace(r"\p{L}+", r"[\p{L}\p{M}]+") % ""
    split = pre_tokenizers.Split(Regex(rule), "isolated")
    return ascii_tokenizer(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)]))


def twice() -> PreTrainedTokenizerFast:
    tokenizer = ascii_tokenizer()
    template = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def without_bytes() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")], byte_fallback=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


REFUSED = {
    "of another kind": (wordpiece, "is of kind WordLevel, not BPE; this model cannot be exported to GGUF"),
    "without merges": (byte_tokenizer, "has no merges"),
    "another rule": (lambda: ascii_tokenizer(pre_tokenizers.Whitespace()), r"by a rule that is not known here \(known"),
    "lower case": (lower, "by a rule that is not known here"),
    "no end": (endless, "has no token that ends a text"),
    "marks in words": (with_marks, "by a rule that is not known here"),
    "bos twice": (twice, r"adds tokens \[1, 1\] before a text and \[\] after it"),
    "no bytes": (without_bytes, "has no token for 256 of 256 bytes"),
    "more tokens than embeddings": (reference_tokenizer, "has ids up to 260, and the model 200 embeddings"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_tokenizer_that_llama_cpp_does_not_have(what):
    make, words = REFUSED[what]
    with pytest.raises(UnsupportedModelError, match=words):
        tokenizer_fields(make(), 200, [])
