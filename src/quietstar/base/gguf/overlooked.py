"""What a GGUF file says of a model, or llama.cpp assumes of its family, and transformers overlooks."""

from typing import Any

from quietstar.base.gguf.header import GGUFHeader
from quietstar.base.gguf.rope import rope_scaling

LARGEST = {"gemma2": 46, "gemma3": 62}
"""number of layers of Gemma's 27B models, which divide queries by the square root of their width per head, not of the
head's size"""
SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def overlooked_settings(header: GGUFHeader) -> dict[str, Any]:
    """Return settings that a config of transformers lacks, or has wrong, when it is built from a GGUF file.

    Raises:
        CheckpointError: the rope's scaling factor is not a number of at least 1.
    """
    found: dict[str, Any] = {}
    if (scaling := rope_scaling(header)) is not None:
        found["rope_scaling"] = scaling
    if size := header.of_model("attention.key_length"):
        found["head_dim"] = size
    if header.architecture in LARGEST:
        found |= {name: cap for name in SOFT_CAPS if (cap := header.of_model(name)) is not None}
        names = ("block_count", "embedding_length", "attention.head_count", "attention.key_length")
        if all(shape := [header.of_model(name) for name in names]):
            found["query_pre_attn_scalar"] = query_scalar(header.architecture, *shape)
    return found


def query_scalar(architecture: str, n_layers: int, hidden_size: int, n_heads: int, head_size: int) -> int:
    """Return the number by whose square root llama.cpp divides queries of Gemma 2 and 3."""
    return hidden_size // n_heads if n_layers == LARGEST[architecture] else head_size
