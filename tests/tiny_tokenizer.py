"""A tokenizer small enough to make in a test, and a folder that holds a tiny model with it."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from quietstar import QuietStarForCausalLM
from tests.tiny import FAMILIES, loud, make_thoughtful


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and eos; no token for padding, as Mistral's has none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {byte: 3 + i for i, byte in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def ascii_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the 128 ASCII characters and two merges: every token is whole characters."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [bytes_.pre_tokenize_str(chr(byte))[0][0] for byte in range(128)]
    words = ["<unk>", "<s>", "</s>", *letters, "ab", "Ġab"]
    vocabulary = {word: id for id, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "ab")]))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tiny_folder(
    folder: Path, family: str = "mistral", tokenizer: PreTrainedTokenizerFast | None = None, **settings: object
) -> Path:
    """A folder that holds a tiny base model and its tokenizer."""
    tokenizer = tokenizer or byte_tokenizer()
    config = {**FAMILIES[family], "vocab_size": len(tokenizer), **settings}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.split("-")[0], **config))
    loud(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def thinking_folders(where: Path, base: dict | None = None, **settings: object) -> Path:
    """A folder with a plain model in `base`, and in `thinking` one that was made of it, with random thoughts."""
    tiny_folder(where / "base", **(base or {}))
    model = QuietStarForCausalLM.from_base(str(where / "base"), **settings)
    make_thoughtful(model)
    model.save_pretrained(where / "thinking")
    byte_tokenizer().save_pretrained(where / "thinking")
    return where
