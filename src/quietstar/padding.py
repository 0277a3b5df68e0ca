"""Token ids that a model has rows for and its tokenizer has no token: what fills a vocabulary up to a round number."""

from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
