"""Families of models that llama.cpp computes as transformers does, and the fields of a GGUF file that describe them.

Of everything that a config can say, llama.cpp reads some fields, and assumes the rest. A config that says something
else than is assumed is refused: its file would load, and predict something else.

Source: https://github.com/ggml-org/llama.cpp/tree/master/src/models
"""

import logging
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from quietstar.base.gguf.overlooked import SOFT_CAPS, query_scalar
from quietstar.errors import UnsupportedModelError, shown

logger = logging.getLogger(__name__)

SLIDING, FULL = "sliding_attention", "full_attention"
LOCAL_BASE = 10_000
"""base of the rope frequencies of Gemma 3's layers with a window"""


@dataclass(frozen=True)
class Family:
    """What llama.cpp assumes of a family."""

    architecture: str
    """name in llama.cpp"""
    activation: str = "silu"
    turns: bool = False
    """whether the two halves of a query or key are interleaved, row by row"""
    norm_offset: float = 0.0
    """what is added to the weights of norms, which transformers adds as it computes"""
    full_every: int = 0
    """every how many layers one sees the whole text, and the others a window; 0 if no layer has a window"""
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    """rope types in transformers that it computes"""


_LLAMA = Family("llama", turns=True, ropes=("default", "linear", "yarn", "llama3"))
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", "gelu_pytorch_tanh", norm_offset=1.0, full_every=2),
    "gemma3_text": Family("gemma3", "gelu_pytorch_tanh", norm_offset=1.0, full_every=6),
}
"""model_type in transformers -> family"""


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a config.

    Raises:
        UnsupportedModelError: it is not one of FAMILIES, or the config differs from what llama.cpp assumes.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"models of family {config.model_type!r} cannot be exported to GGUF; supported are {', '.join(FAMILIES)}"
        )
    for name, value, assumed in _assumptions(config, family):
        if value != assumed:
            raise UnsupportedModelError(
                f"the model's {name} is {shown(value)}, and llama.cpp assumes {shown(assumed)} for "
                f"{family.architecture}; this model cannot be exported to GGUF"
            )
    return family


def head_size(config: PreTrainedConfig) -> int:
    """Return the size of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def ropes(config: PreTrainedConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rope settings of layers that see the whole text, and of those with a window."""
    rope: dict[str, Any] = config.rope_parameters
    return (rope[FULL], rope[SLIDING]) if FULL in rope else (rope, rope)


def fields_of(config: PreTrainedConfig, family: Family) -> dict[str, Any]:
    """Return the fields that describe a config, without the prefix of the architecture.

    Where llama.cpp has no windows for a family, the context ends with the window: up to there both predict the same.
    """
    rope, _ = ropes(config)
    length = config.max_position_embeddings
    window = config.sliding_window if _has_windows(config) else None
    if window and not family.full_every and window < length:
        logger.warning(
            "the model's layers see %s tokens back, which llama.cpp does not support for %s: the file states a context "
            "of %s tokens, not %s",
            f"{window:,}",
            family.architecture,
            f"{window:,}",
            f"{length:,}",
        )
        length = window
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size(config),
        "attention.value_length": head_size(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_size(config),
        "rope.freq_base": float(rope["rope_theta"]),
        **{name: getattr(config, name, None) for name in SOFT_CAPS},
    }
    if family.full_every:
        fields["attention.sliding_window"] = config.sliding_window
    if rope["rope_type"] in ("linear", "yarn"):
        fields |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
        fields["rope.scaling.original_context_length"] = rope.get("original_max_position_embeddings")
    return {name: value for name, value in fields.items() if value is not None}


def _has_windows(config: PreTrainedConfig) -> bool:
    layers = getattr(config, "layer_types", None)
    return SLIDING in layers if layers else getattr(config, "sliding_window", None) is not None


def _assumptions(config: PreTrainedConfig, family: Family) -> list[tuple[str, Any, Any]]:
    """Return what llama.cpp assumes: the name of a setting, its value here, and the value assumed."""
    rope, local_rope = ropes(config)
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    biased = bool(getattr(config, "attention_bias", False))
    known: list[tuple[str, Any, Any]] = [
        ("hidden_act", activation, family.activation),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0),
        ("attention_bias", biased, biased and family.architecture == "llama"),
    ]
    kind = rope["rope_type"]
    if kind not in family.ropes:
        known.append(("rope_type", kind, " or ".join(family.ropes)))
    if kind == "yarn":
        assumed = {"attention_factor": None, "beta_fast": 32, "beta_slow": 1, "mscale": None, "truncate": True}
        for name, value in assumed.items():
            given = rope.get(name)
            known.append((name, value if given is None else given, value))
    if family.architecture == "qwen2":
        known.append(("head_dim", head_size(config), config.hidden_size // config.num_attention_heads))
    return known + (_assumptions_of_gemma(config, family, local_rope) if family.full_every else [])


def _assumptions_of_gemma(
    config: PreTrainedConfig, family: Family, local_rope: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    n = config.num_hidden_layers
    layers = [FULL if (layer + 1) % family.full_every == 0 else SLIDING for layer in range(n)]
    scalar = query_scalar(family.architecture, n, config.hidden_size, config.num_attention_heads, head_size(config))
    known = [
        ("layer_types", config.layer_types, layers),
        ("query_pre_attn_scalar", config.query_pre_attn_scalar, scalar),
        ("use_bidirectional_attention", bool(getattr(config, "use_bidirectional_attention", False)), False),
    ]
    if family.architecture == "gemma2":  # Without these fields, it takes 50 and 30.
        return known + [(name, value, value or "a number") for name in SOFT_CAPS for value in [getattr(config, name)]]
    return [
        *known,
        ("rope_theta of layers with a window", local_rope["rope_theta"], LOCAL_BASE),
        ("rope_type of layers with a window", local_rope["rope_type"], "default"),
        ("attn_logit_softcapping", config.attn_logit_softcapping, None),
    ]
