"""Special tokens of a model in a GGUF file: the ones that transformers assigns, compared with the file's.

Where they differ, the file wins: llama.cpp uses it, and the model was published with it.
"""

import json
import logging

import transformers
from tokenizers import AddedToken
from tokenizers import Tokenizer as BackendTokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.gguf.header import ADD_BOS, CHAT_TEMPLATE, PRE_TOKENIZER, TOKEN_TYPES, GGUFHeader
from quietstar.base.gguf.pre_tokenizer import ADDS_BOS, set_pre_tokenizer
from quietstar.base.untrusted import is_whole
from quietstar.errors import CheckpointError, shown

logger = logging.getLogger(__name__)

TRANSFORMERS = f"transformers {transformers.__version__}"
ID = "tokenizer.ggml.{}_token_id"
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""special tokens: names in transformers -> names in the file"""
ENDS = ("eos", "eot", "eom")
"""tokens that end a text, a turn or a message; llama.cpp stops at each of them"""
CONTROL, USER_DEFINED = 3, 4
NEVER_SPLIT = (CONTROL, USER_DEFINED)
"""types of tokens that are matched whole in a text: control tokens, and user-defined ones such as <think>"""


def corrected(tokenizer: Tokenizer, header: GGUFHeader) -> Tokenizer:
    """Return the tokenizer that transformers built, corrected with a warning where the file says otherwise.

    Raises:
        CheckpointError: it cannot be corrected.
    """
    ids = special_ids(header)
    tokenizer = _without_extra_tokens(tokenizer, header, ids)
    set_pre_tokenizer(tokenizer, header)
    _check_special(tokenizer, header, ids)
    _check_others(tokenizer, header, ids)
    return tokenizer


def special_ids(header: GGUFHeader) -> dict[str, int]:
    """Return the ids of the special tokens that the file names: bos, eos, unk, pad and those of ENDS.

    Raises:
        CheckpointError: an id is not in the vocabulary.
    """
    named = SPECIAL | {name: name for name in ENDS}
    ids = {name: header.fields.get(ID.format(name_in_file)) for name, name_in_file in named.items()}
    n_tokens = min(len(header.tokens), _n_rows(header))
    for name, id in ids.items():
        if id is not None and not (is_whole(id) and 0 <= id < n_tokens):
            raise CheckpointError(
                f"{header.file} has {n_tokens} tokens, but token {shown(id)} as {name}; download it again, or give "
                "another one"
            )
    return {name: id for name, id in ids.items() if id is not None}


def _n_rows(header: GGUFHeader) -> int:
    """Return the number of embeddings, or of tokens if the file has the embeddings under another name."""
    shape = header.shapes.get("token_embd.weight")
    return shape[-1] if shape else len(header.tokens)


def set_special_ids(model: PreTrainedModel, header: GGUFHeader) -> None:
    """Set the file's special tokens in config and generation config; generation ends at any of ENDS."""
    if not header.tokens:
        return
    ids = special_ids(header)
    ends = list(dict.fromkeys(ids[name] for name in ENDS if name in ids))
    for name in ("bos", "eos", "pad"):
        id, own = ids.get(name), getattr(model.config, f"{name}_token_id", None)
        if isinstance(own, list | tuple) and id in own:  # families with several eos tokens
            ends = list(dict.fromkeys([*ends, *own]))
            continue
        if own not in (None, id):
            _warn(header, name, id, f"config of its family has {own}")
        setattr(model.config, f"{name}_token_id", id)
        if model.generation_config is not None:
            setattr(model.generation_config, f"{name}_token_id", id)
    if model.generation_config is not None and len(ends) > 1:
        model.generation_config.eos_token_id = ends


def _warn(header: GGUFHeader, name: str, id: int | None, difference: str) -> None:
    in_file = f"has no {name} token" if id is None else f"has {name} token {id}"
    logger.warning("%s %s, but transformers' %s: using the file's", header.file, in_file, difference)


def _without_extra_tokens(tokenizer: Tokenizer, header: GGUFHeader, ids: dict[str, int]) -> Tokenizer:
    """Return a tokenizer without the tokens that its class adds to the file's: the model has no embeddings for them."""
    n_tokens, state = len(header.tokens), json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in state["added_tokens"] if token["id"] < n_tokens]
    if len(kept) == len(state["added_tokens"]):
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=BackendTokenizer.from_str(json.dumps(state | {"added_tokens": kept})),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        **{f"{name}_token": header.tokens[ids[name]] if name in ids else None for name in SPECIAL},
    )


def _check_special(tokenizer: Tokenizer, header: GGUFHeader, ids: dict[str, int]) -> None:
    """Set the file's special tokens in the tokenizer; raise CheckpointError if it has them at other ids."""
    tokens = header.tokens
    for name in SPECIAL:
        own, id = getattr(tokenizer, f"{name}_token_id"), ids.get(name)
        if own == id or (id is None and name in ("unk", "pad") and own < len(tokens)):
            continue
        if id is not None and tokenizer.convert_tokens_to_ids(tokens[id]) != id:
            raise CheckpointError(
                f"{header.file} has {name} token {id} ({shown(tokens[id])}), but the tokenizer that {TRANSFORMERS} "
                "builds from it and from files next to it has another token there; move the file into a folder of its "
                "own, or give the model's own folder or hub name"
            )
        _warn(header, name, id, f"tokenizer has {own}")
        setattr(tokenizer, f"{name}_token", None if id is None else tokens[id])


def _check_others(tokenizer: Tokenizer, header: GGUFHeader, ids: dict[str, int]) -> None:
    """Compare the rest of a tokenizer with the file: size, tokens that are never split, bos, chat template.

    Raises:
        CheckpointError: it has tokens that the model has no embeddings for.
    """
    tokens, n_rows = header.tokens, _n_rows(header)
    if (highest := max(tokenizer.get_vocab().values())) >= n_rows:
        raise CheckpointError(
            f"{header.file} has {n_rows} embeddings, but the tokenizer that {TRANSFORMERS} builds from it has ids up "
            f"to {highest}; give the model's own folder or hub name"
        )
    types = (header.fields.get(TOKEN_TYPES) or [])[: len(tokens)]
    whole = tokenizer.added_tokens_decoder.keys()
    split = [id for id, kind in enumerate(types) if kind in NEVER_SPLIT and id not in whole]
    known = [id for id in split if tokenizer.convert_tokens_to_ids(tokens[id]) == id]
    tokenizer.add_tokens([AddedToken(tokens[id], special=types[id] == CONTROL, normalized=False) for id in known])
    if unknown := [tokens[id] for id in split if id not in known]:
        logger.warning(
            "%s has special tokens (%s, first %s) that transformers' tokenizer does not know, and splits",
            header.file,
            f"{len(unknown):,}",
            shown(unknown[0]),
        )
    begins = header.fields.get(ADD_BOS, True if header.fields.get(PRE_TOKENIZER) in ADDS_BOS else None)
    if begins is not None and "bos" in ids and begins != (tokenizer("a")["input_ids"][:1] == [ids["bos"]]):
        tokenizer.add_bos_token = bool(begins)
    template = header.fields.get(CHAT_TEMPLATE) or ""
    ends = [tokens[ids[name]] for name in ENDS if name in ids]
    if template and not any(end in template for end in (*ends, "eos_token")):
        logger.warning(
            "%s: its chat template contains none of the tokens at which generation ends (%s), so answers may run on; "
            "correct eos_token_id in generation_config.json of the folder that is saved",
            header.file,
            ", ".join(map(shown, ends)) or "the file has none",
        )
