"""Token ids that a model has no embedding of, and those that its tokenizer has no token for: rows that fill a
vocabulary up to a round number.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.errors import SettingsError

if TYPE_CHECKING:
    from quietstar.model import QuietStarForCausalLM


def n_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first id after the last one that a text may have; None where the model's vocabulary ends before.

    An id that ends a text for the model is one of them, whatever the tokenizer knows.
    """
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    first = max((*tokenizer.get_vocab().values(), *ends), default=-1) + 1
    return first if first < model.config.get_text_config().vocab_size else None


def padding_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> range:
    """The ids that no text has."""
    V = model.config.get_text_config().vocab_size
    first = n_tokens(model, tokenizer)
    return range(V if first is None else first, V)


def suppress_padding(model: "QuietStarForCausalLM", tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model neither think nor say ids that its tokenizer has no token for."""
    model.config.n_tokens = n_tokens(model, tokenizer)


def n_embeddings(model: PreTrainedModel) -> int:
    """Tokens that a model has embeddings of: its tokenizer may know more."""
    weight = model.get_input_embeddings().weight
    return len(weight) or int(getattr(weight, "ds_shape", (0,))[0])  # ZeRO-3 keeps the shape of what it has spread


def check_ids(model: PreTrainedModel, ids: Iterable[int], what: str) -> None:
    """Raise SettingsError where a text has a token that the model has no embedding of."""
    n_rows = n_embeddings(model)
    if (highest := max(ids, default=0)) >= n_rows:
        raise SettingsError(
            f"{what} has token {highest}, and the model has {n_rows} embeddings; give the tokenizer that belongs to it"
        )
