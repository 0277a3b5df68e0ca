"""Where the tokens of a thought come from: sampled by the model, or one of the controls, which think nothing.

A control has the places, the length and the branches of sampled thoughts, but no content: whatever it gains comes from
computation alone.

    sampled   the model writes them (`quietstar.think`)
    filler    one token, again and again
    random    drawn uniformly from the vocabulary
    copy      the last K tokens of the text once more; a text with fewer repeats its first token in front

Legend: B rows, S tokens in a row, Q of them new, P thoughts of each position, C columns of all rows together, K tokens
of a thought.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quietstar.base.draws import Generators, integers
from quietstar.base.trunk import Text
from quietstar.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ThoughtSource:
    """The source of a model's thoughts."""

    kind: str
    """one of `quietstar.config.THOUGHT_SOURCES`"""
    n_tokens: int
    """K"""
    vocab_size: int
    filler: int | None
    """token id of filler thoughts"""

    @property
    def is_sampled(self) -> bool:
        """Whether the model writes its thoughts itself."""
        return self.kind == "sampled"

    def write(
        self,
        text: Text,
        rows: Tensor,
        columns: Tensor,
        n_passes: int,
        suppressed: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Return the thoughts [P, C, K] of a control.

        Args:
            text: that is read.
            rows: [C], of each column.
            columns: [C], among all S tokens.
            n_passes: P
            suppressed: [n] ids that a random thought may not contain.
            generator: of random thoughts, on the model's device.

        Raises:
            SettingsError: the filler, or the text in the cache, is not known.
        """
        shape = (n_passes, len(columns), self.n_tokens)
        if self.kind == "filler":
            if self.filler is None:
                raise SettingsError(
                    "thought_source is filler, and its token is not known, as the model was given thoughts without a "
                    "tokenizer; set filler_token_id in the model's config"
                )
            return columns.new_full(shape, self.filler)
        if self.kind == "random":
            return self._random(shape, columns, suppressed, generator)
        return self._last_tokens(text, rows, columns).expand(shape)

    def _random(
        self, shape: tuple[int, ...], columns: Tensor, suppressed: Tensor | None, generator: Generators
    ) -> Tensor:
        allowed = torch.ones(self.vocab_size, dtype=torch.bool, device=columns.device)
        if suppressed is not None:
            allowed[suppressed] = False
        ids = allowed.nonzero().flatten()
        return ids[integers(len(ids), shape, generator, columns.device, rows=1)]

    def _last_tokens(self, text: Text, rows: Tensor, columns: Tensor) -> Tensor:
        """Return [C, K]: the tokens up to each column."""
        ids = text.all_ids
        if ids is None:
            raise SettingsError(
                "thought_source is copy, and the tokens in the cache are not known; call generate, or give the whole "
                "text without a cache"
            )
        first = text.attention_mask.int().argmax(1)[rows, None]
        back = torch.arange(self.n_tokens - 1, -1, -1, device=columns.device)
        return ids[rows[:, None], (columns[:, None] - back).maximum(first)]
