"""Rope scaling of a model in a GGUF file, which transformers ignores.

Without it, a model that was trained with scaled positions predicts differently at any length.
"""

import math
from typing import Any

import torch
from torch import Tensor

from quietstar.base.gguf.header import GGUFHeader
from quietstar.base.untrusted import is_number
from quietstar.errors import CheckpointError, shown

FREQUENCIES = "rope_freqs.weight"
LENGTH, LOW, HIGH = 8192, 1.0, 4.0
"""constants of Llama 3.1 to 3.3: the original context length; frequencies that turn fewer than LOW times in it are
divided by the full factor, and those that turn more than HIGH times are unchanged"""


def rope_scaling(header: GGUFHeader) -> dict[str, Any] | None:
    """Return the file's rope scaling as a config of transformers has it, or None if it has none.

    Linear scaling and YaRN are metadata fields; Llama 3's scaling is a tensor of divisors of the frequencies.

    Raises:
        CheckpointError: the factor is not a number of at least 1.
    """
    kind = header.of_model("rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return _llama3(header)
    factor = header.of_model("rope.scaling.factor")
    if not (is_number(factor) and factor >= 1):
        raise CheckpointError(
            f"{header.file} has rope scaling factor {shown(factor)}, not a number of at least 1; download it again, or "
            "give another file"
        )
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn" and (original := header.of_model("rope.scaling.original_context_length")):
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3(header: GGUFHeader) -> dict[str, Any] | None:
    """Return Llama 3's scaling if the file's tensor of divisors matches it, otherwise None."""
    divisors, base = header.floats(FREQUENCIES), header.of_model("rope.freq_base")
    if divisors is None or not is_number(base):
        return None
    factor = float(divisors.max())
    if not torch.allclose(divisors, llama3_divisors(len(divisors), base, factor), rtol=1e-4):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": LENGTH,
    }


def llama3_divisors(
    n: int, base: float, factor: float, low: float = LOW, high: float = HIGH, length: int = LENGTH
) -> Tensor:
    """Return the divisors [n] that Llama 3 applies to the n frequencies of a head."""
    wavelengths = 2 * math.pi * base ** (torch.arange(n, dtype=torch.float64) / n)
    kept = ((length / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - kept) / factor + kept)).float()
