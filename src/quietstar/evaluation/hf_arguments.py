"""Arguments of lm-eval's `hf` model, given for a model that is loaded without it."""

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from quietstar.errors import SettingsError

HELD_TO = frozenset(
    {"batch_size", "max_batch_size", "max_length", "truncation", "add_bos_token", "prefix_token_id", "logits_cache"}
    | {"softmax_dtype", "mixed_precision_dtype", "think_end_token", "enable_thinking", "chat_template_args"}
)
"""those that do not say how to load a model"""
NEUTRAL = {"backend": "causal"}
"""values that ask for nothing, beside None and the default"""


def without_defaults(given: dict[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Those that count; the others must ask for nothing, as lm-eval would ignore them in silence.

    Args:
        given: by the user.
        known: parameters of lm-eval's `hf` model.

    Raises:
        SettingsError: one is not known, or would load something else than the model that is there.
    """
    found = {}
    for name, value in given.items():
        if name in HELD_TO:
            found[name] = value
        elif name not in known or known[name].kind is Parameter.VAR_KEYWORD:
            raise SettingsError(f"model_args hold {name}, which --model quietstar does not know; leave it out")
        elif value is not None and value not in (known[name].default, NEUTRAL.get(name)):
            raise SettingsError(
                f"model_args hold {name}={value}, which --model quietstar does not follow; give as pretrained a folder "
                "with the model and the tokenizer that are to be measured"
            )
    return found
