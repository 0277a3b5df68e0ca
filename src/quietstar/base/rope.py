"""Rotary embeddings whose frequencies depend on the length of the text: LongRoPE and dynamic NTK scaling.

These base models choose their frequencies in each call, by its highest position. The positions of a branch lie past the
end of its text, so branches reuse the frequencies of their text: a thought never changes how the text before it is
encoded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from quietstar.errors import SettingsError, UnsupportedModelError

FIXED = "default"
"""rope type whose frequencies never change"""


def _settings(config: PreTrainedConfig) -> dict[str | None, dict[str, Any]]:
    """Return the rope settings with length-dependent frequencies by layer type, under None if all layers share them."""
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_layer = {None: settings} if "rope_type" in settings else settings
    return {
        layer: each
        for layer, each in by_layer.items()
        if isinstance(each, dict) and (_is_dynamic(each) or each.get("rope_type") == "longrope")
    }


def _is_dynamic(settings: dict[str, Any]) -> bool:
    return "dynamic" in settings.get("rope_type", "")


def steady_length(config: PreTrainedConfig) -> int | None:
    """Return the length up to which all texts share the same frequencies, in tokens; None if there is no limit."""
    limits = [
        config.get_text_config().max_position_embeddings
        if _is_dynamic(settings)
        else settings["original_max_position_embeddings"]
        for settings in _settings(config).values()
    ]
    return min(limits, default=None)


class Frequencies:
    """The rope frequencies of a text, kept for its branches; only `choose` and `kept` change the base model."""

    def __init__(self, base_lm: PreTrainedModel) -> None:
        settings = _settings(base_lm.config)
        modules = [module for module in base_lm.modules() if hasattr(module, "rope_type")] if settings else []
        self._rotaries: list[tuple[Any, str | None]] = [(m, layer) for m in modules for layer in settings]
        self._chosen: list[Tensor] = []

    def choose(self, position_ids: Tensor) -> None:
        """Remember the frequencies that the base model uses for these positions, of any shape."""
        self._chosen = []
        for module, layer in self._rotaries:
            name = _buffer(layer)
            if "dynamic" in (module.rope_type if layer is None else module.rope_type[layer]):
                # transformers keeps using the frequencies of a longer text that came before
                setattr(module, name, getattr(module, _buffer(layer, "original_inv_freq")).to(position_ids.device))
                setattr(module, _buffer(layer, "max_seq_len_cached"), module.original_max_seq_len)
            _embed(module, layer, position_ids.max().view(1, 1))
            self._chosen.append(getattr(module, name).clone())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Make the base model use the chosen frequencies at all positions, or its own if none were chosen."""
        before = []
        for (module, layer), frequencies in zip(self._rotaries, self._chosen, strict=bool(self._chosen)):
            name, kind = _buffer(layer), module.rope_type
            before.append((module, name, getattr(module, name), kind))
            setattr(module, name, frequencies)
            module.rope_type = FIXED if layer is None else {**kind, layer: FIXED}
        try:
            yield
        finally:
            for module, name, own, kind in reversed(before):
                setattr(module, name, own)
                module.rope_type = kind

    def check(self, limit: int) -> None:
        """Raise UnsupportedModelError if frequencies cannot be kept past a limit at which they change."""
        if not self._rotaries:
            raise UnsupportedModelError(_UNKNOWN)
        module, layer = self._rotaries[0]
        near = torch.arange(2, device=getattr(module, _buffer(layer)).device)[None]
        far = torch.cat([near, near + 2 * limit], dim=1)
        self.choose(near)
        for module, layer in self._rotaries:
            own = _embed(module, layer, near)
            with self.kept():
                kept = _embed(module, layer, far)
            if not all(torch.equal(a, b[:, :2]) for a, b in zip(own, kept, strict=True)):
                raise UnsupportedModelError(_UNKNOWN)


_UNKNOWN = (
    "the rope frequencies of this base model depend on the length of the text in a way that is not supported; "
    "choose another base model, or one without rope scaling"
)


def check_rope(base_lm: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if rope frequencies depend on the length in a way that is not supported."""
    limit = steady_length(base_lm.config)
    if limit is not None:
        Frequencies(base_lm).check(limit)


def check_cached(base_lm: PreTrainedModel, position_ids: Tensor, n_past: int) -> None:
    """Raise SettingsError if cached keys were computed with other frequencies than the new tokens need.

    Of the positions [B, S], the first n_past are those of the cached tokens.
    """
    limit = steady_length(base_lm.config)
    if limit is None or n_past == 0 or (length := int(position_ids.max()) + 1) <= limit:
        return
    always = any(map(_is_dynamic, _settings(base_lm.config).values()))
    if always or int(position_ids[:, :n_past].max()) < limit:
        raise SettingsError(
            f"a text of {length} tokens is past the {limit} at which the rope frequencies of this "
            f"{base_lm.config.model_type} model change, and its cache was filled with other frequencies; give "
            f"use_cache=False, or keep prompt and new tokens within {limit}"
        )


def _buffer(layer: str | None, name: str = "inv_freq") -> str:
    return name if layer is None else f"{layer}_{name}"


def _embed(module: Any, layer: str | None, position_ids: Tensor) -> Any:
    like = torch.zeros((), device=position_ids.device)
    return module(like, position_ids, **({} if layer is None else {"layer_type": layer}))
