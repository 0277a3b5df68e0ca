"""How far back each layer of a base model sees, and how masks are handed to it."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from quietstar.errors import UnsupportedModelError

WINDOWED = "sliding_attention"
FULL = "full_attention"


class LayerWindows:
    """The sliding windows of a base model's layers.

    Args:
        config: the base model's text config.

    Raises:
        UnsupportedModelError: a layer is of a kind that no mask can describe (recurrent, chunked).
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.layer_types: list[str] | None = getattr(config, "layer_types", None)
        self.window: int | None = getattr(config, "sliding_window", None)
        strange = sorted(set(self.layer_types or []) - {FULL, WINDOWED})
        if strange:
            raise UnsupportedModelError(
                f"{config.model_type} has layers of type {', '.join(strange)}; branches need layers of type "
                f"{FULL} or {WINDOWED}: choose another base model"
            )

    def of(self, layer: int) -> int | None:
        """The window of a layer; None where it sees everything."""
        is_full = self.layer_types is not None and self.layer_types[layer] == FULL
        return None if is_full else self.window

    def masks(self, make: Callable[[int], Any]) -> Any:
        """What the base model takes as `attention_mask`: one mask, or one for each layer type that it has.

        Args:
            make: the number of a layer -> its mask.
        """
        if self.layer_types is None:
            return make(0)
        return {kind: make(self.layer_types.index(kind)) for kind in dict.fromkeys(self.layer_types)}
