"""A text's cache with one branch at the end of each row, for decoding.

A branch at the end of a text simply continues it: the base model reads the branch like the next tokens, with its own
masks and attention. Only the cache differs: tokens of the text go to the text's cache, and tokens of the branch to
memory that is dropped afterwards.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class ForkedCache(Cache):
    """The base model's cache while it reads a text and then a branch at the end of each row.

    The first pass is over the text, and may include the first tokens of the branch; later passes are over the branch.
    Afterwards the text's cache contains the text only.

    Args:
        text: the cache of the text before this pass, of any kind whose layers know their length.
        branch_length: tokens of a branch.
        n_early: branch tokens at the end of the first pass.
        window: the base model's sliding window; a static layer shorter than it does not know it.
    """

    def __init__(self, text: Cache, branch_length: int, n_early: int = 0, window: int | None = None) -> None:
        # a dynamic cache has no layers before its first pass
        super().__init__(layer_class_to_replicate=lambda: ForkLayer(self, len(self.layers)))
        self.layers: list[Any]
        self.text, self.branch_length, self.n_early, self.window = text, branch_length, n_early, window
        self.rows: Tensor | None = None
        """rows whose branch continues; None for all"""
        self.layers = [ForkLayer(self, index) for index in range(len(text.layers))]

    def close(self) -> None:
        """Free the branches' memory; the cycle of cache and layers would keep it until garbage collection."""
        self.layers.clear()

    def select(self, rows: Tensor) -> None:
        """Continue with only some rows [R] after the pass over the text."""
        self.rows = rows
        for layer in self.layers:
            layer.select(rows)


class ForkLayer(DynamicLayer):
    """One layer's keys and values: those that the text's own layer returns, followed by the branch's.

    Both lie in one tensor, allocated once for all passes over a branch.
    """

    def __init__(self, fork: ForkedCache, index: int) -> None:
        super().__init__()
        self.fork, self.index = fork, index
        layers = fork.text.layers
        self.text_layer: Any = layers[index] if index < len(layers) else None
        """the text's own layer; None if its cache creates it at the first update"""
        self.is_sliding = bool(getattr(self.text_layer, "is_sliding", False))
        self.window: int | None = None
        """tokens that a token sees, itself included; None if the layer keeps everything"""
        if self.text_layer is not None and self.is_sliding:
            self.window = getattr(self.text_layer, "sliding_window", None) or fork.window
        self.n_read = 0 if self.text_layer is None else int(self.text_layer.get_seq_length())
        """number of tokens so far, in text and branch"""
        self.n_kept = self._in_sight(self.n_read)
        """number of those tokens that have keys and values"""
        self.known: tuple[Tensor, Tensor] | None = None
        """[B, J, n_kept, d] after the pass over the text, as the text's own layer returned them"""
        self.memory: tuple[Tensor, Tensor] | None = None
        """[R, J, n_kept + room for the branch, d] of the rows whose branch continues"""

    def _in_sight(self, n: int) -> int:
        """Return how many of n tokens the next one sees."""
        return n if self.window is None else min(n, self.window - 1)

    @property
    def _is_before_text(self) -> bool:
        return self.known is None and self.memory is None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of a pass, and return those that it may attend to."""
        if self._is_before_text:
            return self._read_text(key_states, value_states, *args, **kwargs)
        if self.memory is None:
            self._make_memory(self.fork.rows)
        return self._append(key_states, value_states, self.n_kept - self._in_sight(self.n_kept))

    def _read_text(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        n = keys.shape[2] - self.fork.n_early
        returned = self.fork.text.update(keys[:, :, :n], values[:, :, :n], self.index, *args, **kwargs)
        self.text_layer = self.fork.text.layers[self.index]
        self.n_read, self.n_kept = self.n_read + n, self.n_kept + n
        # a static layer returns its whole memory
        self.known = returned[0][:, :, : self.n_kept], returned[1][:, :, : self.n_kept]
        if not self.fork.n_early:
            return returned
        keys_kept, values_kept = self._make_memory(None)
        if type(self.text_layer) is DynamicLayer:  # store the text's keys and values once
            self.text_layer.keys, self.text_layer.values = keys_kept, values_kept
        return self._append(keys[:, :, n:], values[:, :, n:], 0)

    def _make_memory(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Allocate memory for text and branch, copy the text's keys and values, and return views of them."""
        assert self.known is not None

        def extended(kept: Tensor) -> Tensor:
            B, J, n, d = kept.shape
            memory = kept.new_empty(B if rows is None else len(rows), J, n + self.fork.branch_length, d)
            memory[:, :, :n] = kept if rows is None else kept[rows]
            return memory

        self.memory, self.known = (extended(self.known[0]), extended(self.known[1])), None
        return self.memory[0][:, :, : self.n_kept], self.memory[1][:, :, : self.n_kept]

    def _append(self, keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all of them from index `first` on."""
        assert self.memory is not None
        end = self.n_kept + keys.shape[2]
        for memory, new in zip(self.memory, (keys, values), strict=True):
            memory[:, :, self.n_kept : end] = new
        self.n_read, self.n_kept = self.n_read + keys.shape[2], end
        return self.memory[0][:, :, first:end], self.memory[1][:, :, first:end]

    def select(self, rows: Tensor) -> None:
        """See ForkedCache."""
        if self.memory is not None:
            self.memory = self.memory[0][rows], self.memory[1][rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that a pass of `query_length` tokens gets, and the index of the first."""
        if self._is_before_text and not self.fork.n_early:
            return (query_length, 0) if self.text_layer is None else self.text_layer.get_mask_sizes(query_length)
        before = self.n_kept if self._is_before_text else self._in_sight(self.n_kept)
        return before + query_length, self.n_read - before

    def get_seq_length(self) -> int:
        """Return the number of tokens so far, in text and branch."""
        return self.n_read
