"""The base model as think and talk use it: a trunk that turns tokens into states, a head that turns states into
logits. No file of the base model is patched; it is given embeddings, positions and masks, and asked for its last
hidden state.

Legend: B examples, S base tokens, P passes, C columns, Q steps of a branch, D hidden size, V vocabulary.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from quietstar.attention import AttentionBackend, BranchCache
from quietstar.attention.hook import KeepingKeys
from quietstar.base.lookup import LookUps
from quietstar.base.lora import branch_layers, in_branches
from quietstar.base.rope import Frequencies
from quietstar.base.sharding import is_plain, is_sharded, whole
from quietstar.base.vocabulary import LMHead, bend
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid


class Trunk:
    """A base model seen through a thought grid, during one forward pass.

    Args:
        base_lm: a decoder-only model with its LM head.
        attention: how it attends over a grid.
        adapts_branches: whether adapters of branches, where it has any, act in them.
    """

    def __init__(self, base_lm: PreTrainedModel, attention: AttentionBackend, adapts_branches: bool = True) -> None:
        self.base_lm = base_lm
        self.attention = attention
        self.adapts_branches = adapts_branches
        self.embed = LookUps(base_lm.get_input_embeddings())
        """[...] token ids -> [..., D]"""
        self.head = self._lm_head()
        """the LM head by its parts, for work over the vocabulary a few rows at a time"""
        self.frequencies = Frequencies(base_lm)
        """rope frequencies of the text that is read, where they depend on its length"""
        self.keeps_hidden_states = False
        """whether the first pass, which reads the text, leaves the states of all layers behind"""
        self.hidden_states: tuple[Tensor, ...] = ()
        """[B, S, D] each: embeddings and what every layer made of them, the last after the final norm"""

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings that the base model is given."""
        return self.base_lm.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the same embeddings."""
        return self.base_lm.get_input_embeddings().weight.device

    @property
    def window(self) -> int | None:
        """Of the layers that have one."""
        return getattr(self.base_lm.config.get_text_config(), "sliding_window", None)

    def _lm_head(self) -> LMHead:
        config = self.base_lm.config.get_text_config()
        module = self.base_lm.get_output_embeddings()
        if is_plain(module, nn.Linear):
            weight, bias = whole(module).weight, module.bias
        else:  # an adapter, say: what it does to the identity is its weight
            bias = module(torch.zeros(1, config.hidden_size, dtype=self.dtype, device=self.device))[0]
            identity = torch.eye(config.hidden_size, dtype=self.dtype, device=self.device)
            weight = (module(identity) - bias).T
        return LMHead(weight, bias, **self._bending)

    @property
    def _bending(self) -> dict[str, Any]:
        """What the base model does to the products of its LM head."""
        config = self.base_lm.config.get_text_config()
        return {
            "factor": getattr(config, "logit_scale", None) or 1.0,  # Cohere
            "divisor": getattr(config, "logits_scaling", None) or 1.0,  # Granite
            "softcap": getattr(config, "final_logit_softcapping", None),  # Gemma
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] states after the final norm -> [..., V], as the base model itself makes them."""
        return bend(self.base_lm.get_output_embeddings()(hidden), **self._bending)

    def base_pass(self, embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache) -> Tensor:
        """The ordinary forward pass over the text: [B, S, D] embeddings -> [B, S, D] h_base.

        Its keys and values are appended to `cache`, under gradient checkpointing too.
        """
        how: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
        if torch.is_grad_enabled() and self._recomputes_with_keys and cache.get_seq_length() == 0:
            with self.attention.attending(self.base_lm):
                return self._states(embeds, over_grid=KeepingKeys(cache), **how)
        with self.keeping_caches():
            return self._states(embeds, cache=cache, **how)

    def branch_cache(self, cache: Cache, grid: ThoughtGrid, rows: slice = slice(None)) -> BranchCache:
        """A base pass's keys and values, for branches to grow on: of the rows that the grid has."""
        return BranchCache(cache, grid, by_row=self.attention.by_row, rows=rows)

    def in_branches(self) -> AbstractContextManager:
        """While branch tokens go through the base model: adapters of branches are on."""
        return in_branches(self._branch_layers)

    @property
    def branches_differ(self) -> bool:
        """Whether tokens of text and of branches go through different weights, and so never through one pass."""
        return bool(self._branch_layers)

    @functools.cached_property
    def _branch_layers(self) -> list[Any]:
        return branch_layers(self.base_lm) if self.adapts_branches else []

    def branch_pass(self, grid: ThoughtGrid, steps: range, embeds: Tensor, cache: BranchCache) -> Tensor:
        """Some steps of all branches, over cached keys and values: [Q, P, C, D] embeddings -> the same of states."""
        if embeds.numel() == 0:  # no column anywhere
            return embeds
        position_ids = grid.branch_position_ids(steps)
        if self.attention.by_row:
            embeds, position_ids = (grid.to_rows(of, dim=2) for of in (embeds, position_ids))  # [B, Q, P, N, ...]
        else:
            embeds, position_ids = embeds[None], position_ids[None]
        with self.attention.attending(self.base_lm), self.in_branches():
            hidden = self._states(
                embeds.flatten(1, 3),
                position_ids=position_ids.flatten(1),
                cache=cache,
                **self.attention.steps(grid, steps, cache, embeds.dtype),
            ).view(embeds.shape)
        return grid.from_rows(hidden, dim=2) if self.attention.by_row else hidden[0]

    @property
    def is_sharded(self) -> bool:
        """Whether every process must make the same passes; see `quietstar.base.sharding`."""
        return is_sharded(self.base_lm)

    @property
    def recomputes(self) -> bool:
        """Whether gradient checkpointing is at work: layers then drop every cache in passes with gradient."""
        return any(module.gradient_checkpointing and module.training for module in self._checkpointed)

    @property
    def _recomputes_with_keys(self) -> bool:
        """Whether layers that are computed again can leave their keys and values behind, gradient included.

        Not where their attention cannot be hooked, nor with reentrant checkpoints, whose insides have no gradient, nor
        where the name of the attention function, which is its own when a layer is computed again, chooses another path.
        """
        if getattr(self.base_lm.config.get_text_config(), "reorder_and_upcast_attn", False):  # GPT-2
            return False
        functions = [getattr(module, "_gradient_checkpointing_func", None) for module in self._checkpointed]
        reentrant = any(getattr(function, "keywords", {}).get("use_reentrant", True) for function in functions)
        return self.recomputes and not self.attention.by_row and not reentrant

    @contextmanager
    def keeping_caches(self) -> Iterator[None]:
        """Switch gradient checkpointing off, for passes that need their cache."""
        switched_on = [module for module in self._checkpointed if module.gradient_checkpointing]
        for module in switched_on:
            module.gradient_checkpointing = False
        try:
            yield
        finally:
            for module in switched_on:
                module.gradient_checkpointing = True

    @functools.cached_property
    def _checkpointed(self) -> list:
        if not self.base_lm.training:  # it does nothing there
            return []
        return [module for module in self.base_lm.modules() if hasattr(module, "gradient_checkpointing")]

    def _states(self, embeds: Tensor, cache: Cache | None = None, **kwargs: Any) -> Tensor:
        base_model = self.base_lm.base_model
        kwargs[_cache_name(type(base_model))] = cache  # type: ignore[arg-type]
        keeps = self.keeps_hidden_states and not self.hidden_states
        if keeps:
            kwargs["output_hidden_states"] = True
        with self.frequencies.kept():
            output = base_model(inputs_embeds=embeds, use_cache=cache is not None, **kwargs)
        if keeps:
            self.hidden_states = output.hidden_states
        return output.last_hidden_state


def check_reach(base_lm: PreTrainedModel, n_base: int, branch_length: int) -> None:
    """Raise SettingsError where rows of so many tokens and their branches reach past learned positions."""
    config = base_lm.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    reach = n_base + branch_length
    if limit is None or reach <= limit:
        return
    tables = [module for module in base_lm.modules() if isinstance(module, nn.Embedding)]
    if any(limit <= table.num_embeddings <= limit + 2 for table in tables[1:]):
        raise SettingsError(
            f"{n_base} tokens and branches of {branch_length} reach position {reach}, but {config.model_type} has "
            f"learned {limit} positions; give at most {limit - branch_length} tokens (max_length)"
        )


@functools.cache
def _cache_name(base_model: type[nn.Module]) -> str:
    """What a base model's forward calls its cache: transformers renamed it in 5.24."""
    return "cache" if "cache" in signature(base_model.forward).parameters else "past_key_values"
