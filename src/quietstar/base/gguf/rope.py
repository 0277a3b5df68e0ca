"""Scaled rotary embeddings of a model in a GGUF file: transformers reads the file as if it had none.

A model that was trained with scaled positions predicts something else without them, at any length.
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
"""of Llama 3.1 to 3.3: the original context; a frequency that turns fewer than LOW times in it is divided by the whole
factor, one that turns more than HIGH times is left as it is"""


def rope_scaling(header: GGUFHeader) -> dict[str, Any] | None:
    """The scaling that the file states, as a config of transformers has it; None where it states none.

    Linear scaling and YaRN are fields of the file; Llama 3's is a tensor, by whose values the frequencies are divided.

    Raises:
        CheckpointError: the factor is not a number of at least 1.
    """
    kind = header.of_model("rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return _llama3(header)
    factor = header.of_model("rope.scaling.factor")
    if not (is_number(factor) and factor >= 1):
        raise CheckpointError(
            f"{header.file} scales its rotary embeddings by {shown(factor)}; get it again, or give another one"
        )
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn" and (original := header.of_model("rope.scaling.original_context_length")):
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3(header: GGUFHeader) -> dict[str, Any] | None:
    """Llama 3's scaling, where the tensor holds what it comes to."""
    divisors, base = header.floats(FREQUENCIES), header.of_model("rope.freq_base")
    if divisors is None or not is_number(base):
        return None
    factor = float(divisors.max())
    made = _llama3_divisors(len(divisors), base, factor)
    if not torch.allclose(divisors, made, rtol=1e-4):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": LENGTH,
    }


def _llama3_divisors(n: int, base: float, factor: float) -> Tensor:
    """[n]: by what Llama 3 divides the n frequencies of a head."""
    wavelengths = 2 * math.pi * base ** (torch.arange(n, dtype=torch.float64) / n)
    kept = ((LENGTH / wavelengths - LOW) / (HIGH - LOW)).clamp(0, 1)
    return (1 / ((1 - kept) / factor + kept)).float()
