"""Tokens of a text, with the tokenizer's bos and eos at most once each."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, with the bos and eos that the tokenizer adds, unless the text has them already.

    A text rendered by a chat template may begin with bos.
    """
    lists = tokenizer(list(texts), padding=False, truncation=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return [_once(tokenizer, list(ids)) for ids in lists]


def _once(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return the ids [S] without a second bos or eos that the tokenizer has added."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    twice_bos = bos is not None and ids[:2] == [bos, bos]
    twice_eos = eos is not None and ids[-2:] == [eos, eos]
    if not (twice_bos or twice_eos):
        return ids
    added = list(tokenizer("")["input_ids"])
    adds_bos = added[:1] == [bos]
    if twice_bos and adds_bos:
        ids = ids[1:]
    if twice_eos and added[adds_bos:][-1:] == [eos]:
        ids = ids[:-1]
    return ids
