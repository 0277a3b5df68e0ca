"""Special tokens of a model in a GGUF file: what transformers makes of them, compared with what the file says.

Where they differ the file's word is taken: it is what llama.cpp goes by, and what the model was published with.
"""

import json
import logging

import transformers
from tokenizers import AddedToken
from tokenizers import Tokenizer as BackendTokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.gguf.header import ADD_BOS, CHAT_TEMPLATE, TOKEN_TYPES, WORDS, GGUFHeader
from quietstar.base.gguf.words import BEGINS, set_words
from quietstar.base.untrusted import is_whole
from quietstar.errors import CheckpointError, shown

logger = logging.getLogger(__name__)

TRANSFORMERS = f"transformers {transformers.__version__}"
ID = "tokenizer.ggml.{}_token_id"
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""special tokens as transformers calls them, and as the file does"""
ENDS = ("eos", "eot", "eom")
"""tokens that end a text, a turn or a message: at each of them llama.cpp stops"""
CONTROL, USER_DEFINED = 3, 4
NEVER_CUT = (CONTROL, USER_DEFINED)
"""types of tokens that are found whole in a text: those that are no text, and words such as <think>"""


def checked(tokenizer: Tokenizer, header: GGUFHeader) -> Tokenizer:
    """The tokenizer that transformers has made of a file, put right where the file says otherwise, with a warning.

    Raises:
        CheckpointError: it cannot be put right.
    """
    ids = special_ids(header)
    tokenizer = _of_these_tokens(tokenizer, header, ids)
    set_words(tokenizer, header)
    _check_special(tokenizer, header, ids)
    _check_others(tokenizer, header, ids)
    return tokenizer


def special_ids(header: GGUFHeader) -> dict[str, int]:
    """The special tokens that the file names: bos, eos, unk, pad and those of ENDS.

    Raises:
        CheckpointError: one is no token of its.
    """
    named = SPECIAL | {name: name for name in ENDS}
    ids = {name: header.fields.get(ID.format(of)) for name, of in named.items()}
    n_tokens = min(len(header.tokens), _n_rows(header))
    for name, id in ids.items():
        if id is not None and not (is_whole(id) and 0 <= id < n_tokens):
            raise CheckpointError(
                f"{header.file} says that token {shown(id)} is {name}, and has {n_tokens} tokens; get it again, or "
                "give another one"
            )
    return {name: id for name, id in ids.items() if id is not None}


def _n_rows(header: GGUFHeader) -> int:
    """Rows of the embeddings; as many as there are tokens where the file has them under another name."""
    shape = header.shapes.get("token_embd.weight")
    return shape[-1] if shape else len(header.tokens)


def set_special_ids(model: PreTrainedModel, header: GGUFHeader) -> None:
    """Have the config and the generation config name the file's own special tokens; text ends at any of ENDS."""
    if not header.tokens:
        return
    ids = special_ids(header)
    ends = list(dict.fromkeys(ids[name] for name in ENDS if name in ids))
    for name in ("bos", "eos", "pad"):
        taken, made = ids.get(name), getattr(model.config, f"{name}_token_id", None)
        if isinstance(made, list | tuple) and taken in made:  # of a family that ends texts in several ways
            ends = list(dict.fromkeys([*ends, *made]))
            continue
        if made not in (None, taken):
            _warn(header, name, taken, f"config of its family has {made}")
        setattr(model.config, f"{name}_token_id", taken)
        if model.generation_config is not None:
            setattr(model.generation_config, f"{name}_token_id", taken)
    if model.generation_config is not None and len(ends) > 1:
        model.generation_config.eos_token_id = ends


def _warn(header: GGUFHeader, name: str, taken: int | None, made: str) -> None:
    said = f"names no {name} token" if taken is None else f"says that its {name} token is {taken}"
    logger.warning("%s %s, and transformers' %s: the file's word is taken", header.file, said, made)


def _of_these_tokens(tokenizer: Tokenizer, header: GGUFHeader, ids: dict[str, int]) -> Tokenizer:
    """A tokenizer without the tokens that its class adds behind the file's own: the model has no embeddings of them."""
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
    """Have the tokenizer name the file's own special tokens; raise CheckpointError where it has them elsewhere."""
    tokens = header.tokens
    for name in SPECIAL:
        made, taken = getattr(tokenizer, f"{name}_token_id"), ids.get(name)
        if made == taken or (taken is None and name in ("unk", "pad") and made < len(tokens)):
            continue
        if taken is not None and tokenizer.convert_tokens_to_ids(tokens[taken]) != taken:
            raise CheckpointError(
                f"{header.file} says that its {name} token is {taken} ({shown(tokens[taken])}), and the tokenizer that "
                f"{TRANSFORMERS} makes of it and of files beside it has another one there; move the file into a folder "
                "of its own, or give the model's own folder or hub name"
            )
        _warn(header, name, taken, f"tokenizer has {made}")
        setattr(tokenizer, f"{name}_token", None if taken is None else tokens[taken])


def _check_others(tokenizer: Tokenizer, header: GGUFHeader, ids: dict[str, int]) -> None:
    """Compare the rest of a tokenizer with the file: its size, its tokens that are never cut, bos, the chat template.

    Raises:
        CheckpointError: it has tokens for which the model has no embeddings.
    """
    tokens, n_rows = header.tokens, _n_rows(header)
    if (highest := max(tokenizer.get_vocab().values())) >= n_rows:
        raise CheckpointError(
            f"{header.file} has {n_rows} embeddings, and the tokenizer that {TRANSFORMERS} makes of it has tokens up "
            f"to id {highest}; give the model's own folder or hub name"
        )
    types = (header.fields.get(TOKEN_TYPES) or [])[: len(tokens)]
    whole = tokenizer.added_tokens_decoder.keys()
    cut = [id for id, kind in enumerate(types) if kind in NEVER_CUT and id not in whole]
    known = [id for id in cut if tokenizer.convert_tokens_to_ids(tokens[id]) == id]
    tokenizer.add_tokens([AddedToken(tokens[id], special=types[id] == CONTROL, normalized=False) for id in known])
    if strange := [tokens[id] for id in cut if id not in known]:
        logger.warning(
            "%s has special tokens (%s, first %s) that transformers' tokenizer does not know, and cuts into pieces",
            header.file,
            f"{len(strange):,}",
            shown(strange[0]),
        )
    begins = header.fields.get(ADD_BOS, True if header.fields.get(WORDS) in BEGINS else None)
    if begins is not None and "bos" in ids and begins != (tokenizer("a")["input_ids"][:1] == [ids["bos"]]):
        tokenizer.add_bos_token = bool(begins)
    template = header.fields.get(CHAT_TEMPLATE) or ""
    ends = [tokens[ids[name]] for name in ENDS if name in ids]
    if template and not any(end in template for end in (*ends, "eos_token")):
        logger.warning(
            "%s: its chat template has none of the tokens at which generation ends (%s), and an answer may not end "
            "where it should; correct eos_token_id in generation_config.json of the folder that is saved",
            header.file,
            ", ".join(map(shown, ends)) or "the file names none",
        )
