"""A text's cache with one branch at the end of each row, for decoding.

At the end of a text a branch is the text going on: the base model reads it as it would read the next tokens, with its
own masks and its own attention. Only the cache differs: what belongs to the text is written to the text's own, what
belongs to the branch to memory that is dropped after it.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class ForkedCache(Cache):
    """What the base model is given as its cache while it reads a text and then a branch at the end of each row.

    The first pass is over the text, and the branch's first tokens may ride along with it; all others are over the
    branch. Afterwards the text's cache holds the text and nothing else.

    Args:
        text: the cache of the text before this pass, of any kind whose layers say how long they are.
        branch_length: tokens of a branch.
        n_riding: branch tokens at the end of the first pass.
        window: the base model's sliding window, which a static layer shorter than it does not know.
    """

    def __init__(self, text: Cache, branch_length: int, n_riding: int = 0, window: int | None = None) -> None:
        # a cache that grows with its first pass has no layers yet
        super().__init__(layer_class_to_replicate=lambda: ForkLayer(self, len(self.layers)))
        self.layers: list[Any]
        self.text, self.branch_length, self.n_riding, self.window = text, branch_length, n_riding, window
        self.rows: Tensor | None = None
        """those whose branch goes on; None for all"""
        self.layers = [ForkLayer(self, index) for index in range(len(text.layers))]

    def close(self) -> None:
        """Drop the branches' memory: layers and cache know each other, and would keep it until a garbage collection."""
        self.layers.clear()

    def select(self, rows: Tensor) -> None:
        """Go on with some rows [R] after the pass over the text."""
        self.rows = rows
        for layer in self.layers:
            layer.select(rows)


class ForkLayer(DynamicLayer):
    """One layer's keys and values: those that the text's own layer returns, and the branch's after them.

    The memory for both is one piece, made once for all passes over a branch.

    Args:
        fork: the cache that it is a layer of.
        index: of the layer.
    """

    def __init__(self, fork: ForkedCache, index: int) -> None:
        super().__init__()
        self.fork, self.index = fork, index
        layers = fork.text.layers
        self.own: Any = layers[index] if index < len(layers) else None
        """the text's own layer; None where its cache makes it when it is first written to"""
        self.is_sliding = bool(getattr(self.own, "is_sliding", False))
        self.window: int | None = None
        """tokens that a token sees, itself included; None where the layer keeps everything"""
        if self.own is not None and self.is_sliding:
            self.window = getattr(self.own, "sliding_window", None) or fork.window
        self.n_read = 0 if self.own is None else int(self.own.get_seq_length())
        """tokens so far, of the text and of the branch"""
        self.n_kept = self._in_sight(self.n_read)
        """for how many of them there are keys and values"""
        self.known: tuple[Tensor, Tensor] | None = None
        """[B, J, n_kept, d] after the pass over the text, as the text's own layer returned them"""
        self.memory: tuple[Tensor, Tensor] | None = None
        """[R, J, n_kept and what may follow, d] of the rows whose branch goes on"""

    def _in_sight(self, n: int) -> int:
        """How many of n tokens the next one sees."""
        return n if self.window is None else min(n, self.window - 1)

    @property
    def _is_before_text(self) -> bool:
        return self.known is None and self.memory is None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of a pass, and return those that it may see."""
        if self._is_before_text:
            return self._read_text(key_states, value_states, *args, **kwargs)
        if self.memory is None:
            self._make_memory(self.fork.rows)
        return self._append(key_states, value_states, self.n_kept - self._in_sight(self.n_kept))

    def _read_text(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        n = keys.shape[2] - self.fork.n_riding
        returned = self.fork.text.update(keys[:, :, :n], values[:, :, :n], self.index, *args, **kwargs)
        self.own = self.fork.text.layers[self.index]
        self.n_read, self.n_kept = self.n_read + n, self.n_kept + n
        # a static layer returns all the memory that it has
        self.known = returned[0][:, :, : self.n_kept], returned[1][:, :, : self.n_kept]
        if not self.fork.n_riding:
            return returned
        keys_kept, values_kept = self._make_memory(None)
        if type(self.own) is DynamicLayer:  # the text's keys and values lie there once
            self.own.keys, self.own.values = keys_kept, values_kept
        return self._append(keys[:, :, n:], values[:, :, n:], 0)

    def _make_memory(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """[R, J, n_kept, d] twice: the part of new memory that is filled already."""
        assert self.known is not None
        n, made, filled = self.n_kept, [], []
        for of in self.known:
            B, J, _, d = of.shape
            made.append(of.new_empty(B if rows is None else len(rows), J, n + self.fork.branch_length, d))
            filled.append(made[-1][:, :, :n])
            filled[-1].copy_(of if rows is None else of[rows])
        self.memory, self.known = (made[0], made[1]), None
        return filled[0], filled[1]

    def _append(self, keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Write after what is kept, and return what stands from `first` on."""
        assert self.memory is not None
        end = self.n_kept + keys.shape[2]
        for of, new in zip(self.memory, (keys, values), strict=True):
            of[:, :, self.n_kept : end] = new
        self.n_read, self.n_kept = self.n_read + keys.shape[2], end
        return self.memory[0][:, :, first:end], self.memory[1][:, :, first:end]

    def select(self, rows: Tensor) -> None:
        """See ForkedCache."""
        if self.memory is not None:
            self.memory = self.memory[0][rows], self.memory[1][rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a pass of so many tokens is given, and the index of the first."""
        if self._is_before_text and not self.fork.n_riding:
            return (query_length, 0) if self.own is None else self.own.get_mask_sizes(query_length)
        before = self.n_kept if self._is_before_text else self._in_sight(self.n_kept)
        return before + query_length, self.n_read - before

    def get_seq_length(self) -> int:
        """Tokens of the text and of the branch so far."""
        return self.n_read
