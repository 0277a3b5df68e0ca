"""Token ids without an embedding, and ids without a token: rows that pad a vocabulary to a round number."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.errors import SettingsError


def n_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the number of ids that a text may contain; None if that is the model's whole vocabulary or more.

    The model's end-of-text ids are among them, whatever the tokenizer knows.
    """
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    first = max((*tokenizer.get_vocab().values(), *ends), default=-1) + 1
    return first if first < model.config.get_text_config().vocab_size else None


def padding_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> range:
    """Return the ids that no text contains."""
    V = model.config.get_text_config().vocab_size
    first = n_tokens(model, tokenizer)
    return range(V if first is None else first, V)


def set_token_ids(config: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the fields of a thinking model's config that follow from a tokenizer: n_tokens, and the id of a filler.

    Args:
        config: of the thinking model.
        model: it, or its base model, with the generation config.
        tokenizer: of the model.

    Raises:
        SettingsError: the filler has no token; or this is no tokenizer.
    """
    if not hasattr(tokenizer, "get_vocab"):  # tokenizers of mistral-common have no class in common with others
        raise SettingsError(f"the tokenizer is a {type(tokenizer).__name__}; give one of transformers")
    config.n_tokens = n_tokens(model, tokenizer)
    if config.thought_source == "filler" and config.filler_token_id is None:
        config.filler_token_id = first_token(tokenizer, config.filler_text, "filler_text")


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SettingsError if a tokenizer has tokens that the model has no embedding for."""
    n_rows, highest = n_embeddings(model), max(tokenizer.get_vocab().values(), default=0)
    if highest >= n_rows:
        raise SettingsError(
            f"the tokenizer has tokens up to id {highest}, but the model has {n_rows} embeddings; give the tokenizer "
            "that belongs to the model"
        )


def first_token(tokenizer: PreTrainedTokenizerBase, text: str, setting: str) -> int:
    """Return the id of the first token of a setting's text.

    Raises:
        SettingsError: it has none.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise SettingsError(f"the tokenizer makes no token of {setting} {text!r}; choose another text")
    return int(ids[0])


def n_embeddings(model: PreTrainedModel) -> int:
    """Return the number of tokens that a model has embeddings for; its tokenizer may have more."""
    weight = model.get_input_embeddings().weight
    return len(weight) or int(getattr(weight, "ds_shape", (0,))[0])  # ZeRO-3 keeps the shape of a sharded weight


def check_ids(model: PreTrainedModel, ids: Iterable[int], what: str) -> None:
    """Raise SettingsError if a text has a token that the model has no embedding for."""
    n_rows = n_embeddings(model)
    if (highest := max(ids, default=0)) >= n_rows:
        raise SettingsError(
            f"{what} has token {highest}, and the model has {n_rows} embeddings; give the tokenizer that belongs to it"
        )


def check_tensor(model: PreTrainedModel, ids: Tensor, what: str, ignored: int | None = None) -> None:
    """Raise SettingsError if token ids have no embedding, and are not to be ignored.

    Ids on a GPU are not looked at, which would wait for it.
    """
    if ids.device.type != "cpu":
        return
    n = n_embeddings(model)
    is_wrong = (ids < 0) | (ids >= n)
    if ignored is not None:
        is_wrong &= ids != ignored
    if is_wrong.any():
        wrong = ids[is_wrong]
        other = "" if ignored is None else f", or {ignored} where nothing is to be learned"
        raise SettingsError(f"{what} has token {int(wrong[0])}; give ids from 0 to {n - 1}, as the model has{other}")
