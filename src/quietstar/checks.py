"""What a forward pass refuses, each in one line."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError

IGNORED_ARGUMENTS = frozenset(
    {"token_type_ids", "cache_position", "num_items_in_batch", "tokenizer", "assistant_tokenizer"}
)
"""arguments of forward that generation and trainers hand to every model"""

_CANNOT = "{} was asked for, which a thinking model does not return; leave it out"
NOT_GIVEN = {
    "inputs_embeds": (None, "inputs_embeds were given; give input_ids, as thoughts are read and written as tokens"),
    "output_attentions": (False, _CANNOT.format("output_attentions")),
    "output_router_logits": (False, _CANNOT.format("output_router_logits")),
    "return_dict": (True, _CANNOT.format("a tuple (return_dict=False)")),
}
"""arguments of forward that other tools hand to every model -> the value, beside None, that asks for nothing, and what
is said of any other"""


def check_arguments(
    config: QuietStarConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    thoughts: Tensor | None,
    cache: Cache | None,
    past_key_values: Cache | None,
    counts_given: dict[str, int | None],
    sampling: dict[str, float | None],
    ignored: dict[str, Any],
) -> None:
    """Raise SettingsError where arguments of forward do not fit each other or the model; see its docstring."""
    for name, (nothing, said) in NOT_GIVEN.items():
        if ignored.get(name) is not None and ignored[name] is not nothing:
            raise SettingsError(said)
    if input_ids is None:
        raise SettingsError("input_ids are missing; give [B, S] token ids")
    shape, K = tuple(input_ids.shape), config.n_thought_tokens
    if len(shape) != 2 or 0 in shape:
        raise SettingsError(f"input_ids is {list(shape)}; give [B, S] with at least one token")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise SettingsError(f"attention_mask is {list(attention_mask.shape)}; give [B, S], 0 at padding")
    if labels is not None and tuple(labels.shape) != shape:
        raise SettingsError(f"labels are {list(labels.shape)}; give the shape of input_ids, {list(shape)}")
    if cache is not None and past_key_values is not None:
        raise SettingsError("cache and past_key_values were both given; they are one thing: give cache")
    if labels is not None and (cache is not None or past_key_values is not None):
        raise SettingsError("labels and a cache were both given; give the whole text with labels")
    if thoughts is not None and (thoughts.dim() != 4 or thoughts.shape[::2] != (shape[0], shape[1])):
        raise SettingsError(f"thoughts are {list(thoughts.shape)}; give [B, P, S, K] for input_ids {list(shape)}")
    if thoughts is not None and thoughts.shape[-1] != K:
        raise SettingsError(
            f"thoughts have {thoughts.shape[-1]} tokens; give {K}, which n_ahead {config.n_ahead} leaves "
            "beside start and end"
        )
    for name, value in counts_given.items():
        if value is not None and value < 1:
            raise SettingsError(f"{name} is {value}; give a whole number of at least 1")
    check_sampling(**sampling)
    given = {name for name, value in ignored.items() if value is not None}
    if unknown := sorted(given - IGNORED_ARGUMENTS - NOT_GIVEN.keys()):
        raise SettingsError(f"forward does not know the argument {', '.join(unknown)}; see its docstring")


def check_sampling(thought_temperature: float | None, thought_top_p: float | None) -> None:
    """Raise SettingsError where no thought can be drawn so."""
    if thought_temperature is not None and not 0 <= thought_temperature < float("inf"):
        raise SettingsError(f"thought_temperature is {thought_temperature}; give a number of at least 0")
    if thought_top_p is None or not 0 < thought_top_p <= 1:
        raise SettingsError(f"thought_top_p is {thought_top_p}; give a number above 0, at most 1")


def check_thoughts(config: QuietStarConfig, words: Tensor) -> None:
    """Raise SettingsError where thoughts to learn from hold a token that cannot be sampled.

    Args:
        config: says which tokens are suppressed.
        words: [P, C, K], thoughts that were given, where they are thought.
    """
    held = words[torch.isin(words, torch.tensor(config.suppressed, dtype=words.dtype, device=words.device))]
    if held.numel():
        raise SettingsError(
            f"thoughts hold token {int(held[0])}, which is suppressed and has no probability to learn from; give "
            "thoughts without it"
        )
