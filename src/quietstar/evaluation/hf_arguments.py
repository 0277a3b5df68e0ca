"""Checks of the arguments of lm-eval's `hf` model, most of which do not apply to a model loaded by quietstar."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from quietstar.errors import SettingsError

HELD_TO = frozenset(
    {"batch_size", "max_batch_size", "max_length", "truncation", "add_bos_token", "prefix_token_id", "logits_cache"}
    | {"softmax_dtype", "mixed_precision_dtype", "think_end_token", "enable_thinking", "chat_template_args"}
)
"""arguments that do apply: they do not affect how the model is loaded"""
NEUTRAL = {"backend": "causal"}
"""values that have no effect; nor do None and the default"""


def without_defaults(given: dict[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the arguments that apply; refuse others unless they have no effect, since lm-eval would ignore them.

    Raises:
        SettingsError: an argument is unknown, or would load something else than the given model.
    """
    found = {}
    for name, value in given.items():
        if name in HELD_TO:
            found[name] = value
        elif name not in known or known[name].kind is Parameter.VAR_KEYWORD:
            raise SettingsError(f"model_args has {name}, which --model quietstar does not know; leave it out")
        elif value is not None and value not in (known[name].default, NEUTRAL.get(name)):
            raise SettingsError(
                f"model_args has {name}={value}, which --model quietstar does not support; leave it out, and give as "
                "pretrained a folder with the model and the tokenizer to measure"
            )
    return found
