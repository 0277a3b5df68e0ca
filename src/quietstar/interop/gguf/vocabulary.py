"""A tokenizer as the fields of a GGUF file: its tokens, their types, and the rules by which a text becomes tokens.

llama.cpp knows two kinds: byte-level BPE, with merges and a named rule that splits a text into words; and
SentencePiece's BPE, where the two neighbours are joined whose token has the highest score.
"""

import json
import logging
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.gguf.pre_tokenizer import IGNORES_MERGES, RULES
from quietstar.base.gguf.tokens import CONTROL, ENDS, ID, SPECIAL, USER_DEFINED
from quietstar.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
"""types of tokens"""
PROBE = "I've seen  IT'S 1234567 x2, naïve café 東京 (…)!?\n\n\t if a_b:\r\n   return 3.14 # 100%\n 'll We'Ll "
"""a text that the known rules split in different ways"""
NAMES = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2")
"""rules in the order of preference; names of equal rules are left out"""


def tokenizer_fields(tokenizer: Tokenizer, n_rows: int, ends: Iterable[int]) -> dict[str, Any]:
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
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in described["added_tokens"]}
    words = {id: word for word, id in tokenizer.get_vocab().items()}
    if (highest := max(words)) >= n_rows:
        raise _unsupported(f"has ids up to {highest:,}, and the model {n_rows:,} embeddings")
    is_sentencepiece = bool(model.get("byte_fallback"))
    types = [
        added.get(id, NORMAL if not is_sentencepiece else _type(words[id])) if id in words else UNUSED
        for id in range(n_rows)
    ]
    if is_sentencepiece and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    return {
        "tokenizer.ggml.tokens": [words.get(id, f"[PAD{id}]") for id in range(n_rows)],
        "tokenizer.ggml.token_type": types,
        **(_sentencepiece(tokenizer, model, words, n_rows) if is_sentencepiece else _byte_level(tokenizer, model)),
        **_special(tokenizer, ends),
    }


def _unsupported(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"the tokenizer {why}; this model cannot be exported to GGUF")


def _type(word: str) -> int:
    return BYTE if len(word) == 6 and word.startswith("<0x") and word.endswith(">") else NORMAL


def _byte_level(tokenizer: Tokenizer, model: dict[str, Any]) -> dict[str, Any]:
    backend = tokenizer.backend_tokenizer
    normalized = backend.normalizer.normalize_str(PROBE) if backend.normalizer else PROBE
    pieces = backend.pre_tokenizer and backend.pre_tokenizer.pre_tokenize_str(PROBE)
    names = [
        name
        for name in NAMES
        if RULES[name].pre_tokenize_str(PROBE) == pieces
        and (name in IGNORES_MERGES) == bool(model.get("ignore_merges"))
    ]
    if not names or normalized != PROBE:
        raise _unsupported(f"splits texts by a rule that is not known here (known are {', '.join(NAMES)})")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": names[0],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
    }


def _sentencepiece(tokenizer: Tokenizer, model: dict[str, Any], words: dict[int, str], n_rows: int) -> dict[str, Any]:
    """Return the fields of SentencePiece's BPE; a token's score is the rank of the first merge that makes it."""
    has_prefix = _read(tokenizer, PROBE) == _spaced(f" {PROBE}")
    if not has_prefix and _read(tokenizer, PROBE) != _spaced(PROBE):
        raise _unsupported("changes a text before it is split, in a way that llama.cpp does not")
    if has_prefix and _read(tokenizer, " a") != _spaced("  a"):
        logger.warning(
            "llama.cpp puts a space before every text, and the tokenizer none before one that begins with a space: "
            "such texts become other tokens there"
        )
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


def _read(tokenizer: Tokenizer, text: str) -> str:
    """Return a text as the tokenizer reads it before it looks for tokens."""
    backend = tokenizer.backend_tokenizer
    normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
    pieces = backend.pre_tokenizer.pre_tokenize_str(normalized) if backend.pre_tokenizer else [(normalized, None)]
    return "".join(piece for piece, _ in pieces)


def _spaced(text: str) -> str:
    return text.replace(" ", "▁")


def _special(tokenizer: Tokenizer, ends: Iterable[int]) -> dict[str, Any]:
    own = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    fields = {ID.format(SPECIAL[name]): id for name, id in own.items() if id is not None}
    others = [id for id in dict.fromkeys(ends) if id != own["eos"]]
    fields |= {ID.format(name): id for name, id in zip(ENDS[1:], others, strict=False)}
    ids = tokenizer("a")["input_ids"]
    fields["tokenizer.ggml.add_bos_token"] = own["bos"] is not None and ids[0] == own["bos"]
    fields["tokenizer.ggml.add_eos_token"] = own["eos"] is not None and ids[-1] == own["eos"]
    if isinstance(tokenizer.chat_template, str):
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields
