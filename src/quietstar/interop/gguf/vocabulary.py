"""A tokenizer as the fields of a GGUF file: its tokens, their types, and the rules by which a text becomes tokens.

llama.cpp knows two kinds: byte-level BPE, with merges and a named rule that splits a text into words; and
SentencePiece's BPE, where the two neighbours are joined whose token has the highest score. What it does not do is
refused if it concerns most texts, and told otherwise.
"""

import json
import logging
import unicodedata
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.gguf.header import CHAT_TEMPLATE
from quietstar.base.gguf.pre_tokenizer import IGNORES_MERGES, RULES
from quietstar.base.gguf.tokens import CONTROL, ENDS, ID, SPECIAL, USER_DEFINED
from quietstar.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
"""types of tokens"""
PROBE = (
    "I've seen  IT'S 1234567 x2, na\u00efve caf\u00e9 \u6771\u4eac (\u2026)!?\n\n\t if a_b:\r\n   return 3.14 "
    "# 100%\n 'll We'Ll cafe\u0301 \u0939\u093f\u0928\u094d\u0926\u0940 \u0664\u0662 ABab "
)
"""a text that rules split in different ways: composed and decomposed letters, marks, digits of several scripts"""
NAMES = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2")
"""rules in the order of preference; names of equal rules are left out"""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def tokenizer_fields(tokenizer: Tokenizer, n_rows: int, ends: Sequence[int]) -> dict[str, Any]:
    """Return the fields that describe a tokenizer, by their names in the file.

    Args:
        tokenizer: of the tokenizers library, as transformers has them.
        n_rows: number of embeddings; those without a token get a token that no text contains.
        ends: ids at which generation ends, in addition to the tokenizer's own eos token.

    Raises:
        UnsupportedModelError: llama.cpp has no such tokenizer, or it has more tokens than the model has embeddings.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    model = described["model"]
    if model["type"] != "BPE":
        raise _unsupported(f"is of kind {model['type']}, not BPE")
    if not model["merges"]:
        raise _unsupported("has no merges, without which llama.cpp loads no BPE")
    words = {id: word for word, id in tokenizer.get_vocab().items()}
    if (highest := max([*words, *ends])) >= n_rows:
        raise _unsupported(f"has ids up to {highest:,}, and the model {n_rows:,} embeddings")
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in described["added_tokens"]}
    if stripping := [token["content"] for token in described["added_tokens"] if token["lstrip"] or token["rstrip"]]:
        _warn("the tokenizer drops spaces around %s, and llama.cpp does not", ", ".join(stripping))
    is_sentencepiece = bool(model.get("byte_fallback"))
    types = [_type(id, words, added, is_sentencepiece) for id in range(n_rows)]
    if is_sentencepiece and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    return {
        "tokenizer.ggml.tokens": [words.get(id, f"[PAD{id}]") for id in range(n_rows)],
        "tokenizer.ggml.token_type": types,
        **(_sentencepiece(tokenizer, model, words, n_rows) if is_sentencepiece else _byte_level(tokenizer, model)),
        **_special(tokenizer, ends),
        **_around(tokenizer),
        **_templates(tokenizer.chat_template),
    }


def _unsupported(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the tokenizer {why}; this model cannot be exported to GGUF")


def _warn(what: str, *of: object) -> None:
    logger.warning(f"{what}: such texts become other tokens there", *of)


def _type(id: int, words: dict[int, str], added: dict[int, int], is_sentencepiece: bool) -> int:
    if id not in words:
        return UNUSED
    return added.get(id, BYTE if is_sentencepiece and words[id] in BYTES else NORMAL)


def _byte_level(tokenizer: Tokenizer, model: dict[str, Any]) -> dict[str, Any]:
    backend = tokenizer.backend_tokenizer
    pieces = backend.pre_tokenizer and backend.pre_tokenizer.pre_tokenize_str(PROBE)
    names = [
        name
        for name in NAMES
        if RULES[name].pre_tokenize_str(PROBE) == pieces
        and (name in IGNORES_MERGES) == bool(model.get("ignore_merges"))
    ]
    normalized = [_normalized(tokenizer, text) for text in (PROBE, f" {PROBE} ")]
    is_composed = normalized[0] == unicodedata.normalize("NFC", PROBE)
    if not names or not (is_composed or normalized == [PROBE, f" {PROBE} "]):
        raise _unsupported(f"reads texts by a rule that is not known here (known are {', '.join(NAMES)})")
    if is_composed:
        _warn("the tokenizer composes letters and their accents (NFC), and llama.cpp does not")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": names[0],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
    }


def _sentencepiece(tokenizer: Tokenizer, model: dict[str, Any], words: dict[int, str], n_rows: int) -> dict[str, Any]:
    """Return the fields of SentencePiece's BPE; a token's score is the rank of the first merge that makes it."""
    if missing := set(BYTES) - set(words.values()):
        raise _unsupported(f"has no token for {len(missing)} of 256 bytes, and llama.cpp needs them")
    has_prefix = _read(tokenizer, PROBE) == _spaced(f" {PROBE}")
    if not has_prefix and _read(tokenizer, PROBE) != _spaced(PROBE):
        raise _unsupported("changes a text before it is split, in a way that llama.cpp does not")
    if has_prefix and _read(tokenizer, " a") != _spaced("  a"):
        _warn("llama.cpp puts a space before every text, and the tokenizer none before one that begins with a space")
    special = tokenizer.convert_ids_to_tokens(tokenizer.all_special_ids[:1])
    if has_prefix and special and _first_after(tokenizer, special[0]) != _first_after(tokenizer, ""):
        _warn("llama.cpp puts a space after every special token, and the tokenizer none")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    scores: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        scores.setdefault("".join(pair), -float(rank))
    least = -float(len(merges))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [scores.get(words.get(id, ""), least) for id in range(n_rows)],
        "tokenizer.ggml.add_space_prefix": has_prefix,
    }


def _first_after(tokenizer: Tokenizer, begin: str) -> str:
    """Return the first token of an "a" after a special token, or at the beginning of a text."""
    tokens: list[str] = tokenizer.backend_tokenizer.encode(f"{begin}a", add_special_tokens=False).tokens
    return tokens[1 if begin else 0]


def _normalized(tokenizer: Tokenizer, text: str) -> str:
    normalizer = tokenizer.backend_tokenizer.normalizer
    return str(normalizer.normalize_str(text)) if normalizer else text


def _read(tokenizer: Tokenizer, text: str) -> str:
    """Return a text as the tokenizer reads it before it looks for tokens."""
    text, rule = _normalized(tokenizer, text), tokenizer.backend_tokenizer.pre_tokenizer
    return "".join(piece for piece, _ in rule.pre_tokenize_str(text)) if rule else text


def _spaced(text: str) -> str:
    return text.replace(" ", "▁")


def _special(tokenizer: Tokenizer, ends: Sequence[int]) -> dict[str, Any]:
    """Return the fields of special tokens, and of those that end a text, a turn or a message."""
    own = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    fields = {ID.format(SPECIAL[name]): id for name, id in own.items() if id is not None}
    all_ends = list(dict.fromkeys([*([] if own["eos"] is None else [own["eos"]]), *ends]))
    if not all_ends:
        raise _unsupported("has no token that ends a text (eos), and llama.cpp would take another one")
    if len(all_ends) > len(ENDS):
        logger.warning("a GGUF file names %d tokens that end a text: not %s", len(ENDS), all_ends[len(ENDS) :])
    return fields | {ID.format(name): id for name, id in zip(ENDS, all_ends, strict=False)}


def _around(tokenizer: Tokenizer) -> dict[str, bool]:
    """Return whether bos and eos are added around a text."""
    inside = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole, n = tokenizer(PROBE)["input_ids"], len(inside)
    at = next(at for at in range(len(whole) - n + 1) if whole[at : at + n] == inside)
    before, after = whole[:at], whole[at + n :]
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise _unsupported(
            f"adds tokens {before} before a text and {after} after it, and llama.cpp adds bos and eos alone"
        )
    return {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}


def _templates(template: str | dict[str, str] | None) -> dict[str, Any]:
    """Return the fields of a chat template, or of several by their names."""
    named = {"default": template} if isinstance(template, str) else template or {}
    others = {name: text for name, text in named.items() if name != "default"}
    fields: dict[str, Any] = {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    if others:
        fields["tokenizer.chat_templates"] = list(others)
    return fields | ({CHAT_TEMPLATE: named["default"]} if "default" in named else {})
