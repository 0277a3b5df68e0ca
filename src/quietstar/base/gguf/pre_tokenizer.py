"""Pre-tokenizers of models in GGUF files: how a text is split before its parts become tokens.

For a byte-level vocabulary, a GGUF file names the rule without defining it. transformers knows some of the names, more
with each version, and silently uses GPT-2's rule for the others. For a SentencePiece vocabulary, the file says whether
a space is added before a text; some versions ignore that.

Names and rules: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

import json
import logging
from typing import Any

from tokenizers import Regex, decoders
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, PreTokenizer, Sequence, Split
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.gguf.header import PRE_TOKENIZER, SPACE_PREFIX, TOKENIZER, GGUFHeader
from quietstar.errors import shown

logger = logging.getLogger(__name__)

DIGITS_AT_A_TIME = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""the rule of Llama 3 and Qwen 2; %s is the repetition of digits"""


def _by(pattern: str) -> PreTokenizer:
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


GPT2 = ByteLevel(add_prefix_space=False)
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0")
RULES: dict[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "gigachat", "trillion"), GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        Sequence([Digits(individual_digits=True), GPT2]),
    ),
    **dict.fromkeys((*LLAMA3_NAMES, "dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _by(DIGITS_AT_A_TIME % "{1,3}")),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), _by(DIGITS_AT_A_TIME % "")),
}
"""name -> rule; rules of other names are left to transformers"""
IGNORES_MERGES = frozenset({*LLAMA3_NAMES, "tekken"})
"""names of rules under which a part of the text that is a token is never split, whatever the merges"""
ADDS_BOS = frozenset({*LLAMA3_NAMES, "tekken", "chameleon"})
"""names of rules under which a text begins with bos unless the file says otherwise"""


def set_pre_tokenizer(tokenizer: Tokenizer, header: GGUFHeader) -> None:
    """Make a tokenizer split texts as the file says, and warn if the file's rule is unknown."""
    match header.fields.get(TOKENIZER):
        case "gpt2":
            _set_rule(tokenizer, header)
        case "llama" if header.fields.get(SPACE_PREFIX) is False:
            _add_no_space(tokenizer.backend_tokenizer)


def _set_rule(tokenizer: Tokenizer, header: GGUFHeader) -> None:
    backend, name = tokenizer.backend_tokenizer, header.fields.get(PRE_TOKENIZER)
    backend.decoder = decoders.ByteLevel()  # some versions of transformers drop the first space
    if name in RULES:
        backend.pre_tokenizer = RULES[name]
    elif (rule := _rule(backend)) is not None and rule["type"] == "ByteLevel" and rule["use_regex"]:
        logger.warning(
            "%s %s: using GPT-2's, so texts may become other tokens than in training; the model's own folder has the "
            "right tokenizer",
            header.file,
            "names no pre-tokenizer" if name is None else f"has an unknown pre-tokenizer {shown(name)}",
        )
    if name in IGNORES_MERGES:
        backend.model.ignore_merges = True


def _add_no_space(backend: BackendTokenizer) -> None:
    rule = _rule(backend)
    if rule is not None and rule["type"] == "Metaspace" and rule["prepend_scheme"] != "never":
        backend.pre_tokenizer = Metaspace(prepend_scheme="never", split=rule["split"])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _rule(backend: BackendTokenizer) -> dict[str, Any] | None:
    rule: dict[str, Any] | None = json.loads(backend.to_str())["pre_tokenizer"]
    return rule
