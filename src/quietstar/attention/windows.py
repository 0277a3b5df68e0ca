"""Sliding windows of a base model's layers, and the form in which it takes masks."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from quietstar.errors import UnsupportedModelError

WINDOWED = "sliding_attention"
FULL = "full_attention"


class LayerWindows:
    """The sliding windows of a base model's layers, by its text config.

    Raises:
        UnsupportedModelError: a layer has a type that masks cannot describe (recurrent, chunked).
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.layer_types: list[str] | None = getattr(config, "layer_types", None)
        self.window: int | None = getattr(config, "sliding_window", None)
        unsupported = sorted(set(self.layer_types or []) - {FULL, WINDOWED})
        if unsupported:
            raise UnsupportedModelError(
                f"{config.model_type} has layers of type {', '.join(unsupported)}; only {FULL} and {WINDOWED} are "
                "supported: choose another base model"
            )

    def of(self, layer: int) -> int | None:
        """Return the window of a layer, or None if it attends to everything."""
        is_full = self.layer_types is not None and self.layer_types[layer] == FULL
        return None if is_full else self.window

    def masks(self, make: Callable[[int], Any]) -> Any:
        """Return the base model's `attention_mask` argument: one mask, or a dict with one for each layer type.

        `make` builds the mask of a layer, by its index.
        """
        if self.layer_types is None:
            return make(0)
        return {kind: make(self.layer_types.index(kind)) for kind in dict.fromkeys(self.layer_types)}
