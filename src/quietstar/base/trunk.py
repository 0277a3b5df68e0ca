"""The base model as think and talk use it: a trunk that turns tokens into states, a head that turns states into
logits. No file of the base model is patched; it is given embeddings, positions and masks, and asked for its last
hidden state.

Under gradient checkpointing (`is_checkpointing`), layers that are recomputed cannot write to a cache:

    base pass, layers can be hooked (`_stores_keys`)     layers are recomputed; a hook writes to the cache
    base pass, they cannot                               not recomputed
    branches                                             some columns at a time: `quietstar.talk` recomputes each whole
                                                         part, and its layers are not recomputed one by one

Legend: B examples, S base tokens, Q of them new, T steps of a branch at once, P passes, C columns, D hidden size,
V vocabulary.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from quietstar.attention import AttentionBackend, BranchCache
from quietstar.attention.hook import KeyStoringAttention
from quietstar.base.lookup import LookUps
from quietstar.base.lora import branch_layers, in_branches
from quietstar.base.rope import Frequencies
from quietstar.base.sharding import is_plain, is_sharded, whole
from quietstar.base.vocabulary import LMHead, scale_and_cap
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid


@dataclass(slots=True, kw_only=True)
class Text:
    """Tokens to read, and what was read before them."""

    input_ids: Tensor
    """[B, Q]"""
    attention_mask: Tensor
    """[B, S], 0 at padding"""
    position_ids: Tensor
    """[B, S]"""
    cache: Cache
    """keys and values of the S - Q tokens before"""
    past_ids: Tensor | None = None
    """[B, S - Q]: those tokens, if known"""

    @property
    def all_ids(self) -> Tensor | None:
        """[B, S]: all tokens, if those before are known or there are none."""
        if self.n_new == self.attention_mask.shape[1]:
            return self.input_ids
        return None if self.past_ids is None else torch.cat([self.past_ids, self.input_ids], dim=1)

    @property
    def n_new(self) -> int:
        """Q"""
        return self.input_ids.shape[1]

    @property
    def new_positions(self) -> Tensor:
        """[B, Q]: position ids of the new tokens."""
        return self.position_ids[:, -self.n_new :]


@dataclass(slots=True, kw_only=True)
class BasePass:
    """A text that the base model has read, without a thought."""

    embeds: Tensor
    """[B, Q, D]: embeddings of the new tokens"""
    h_base: Tensor
    """[B, Q, D]: their last hidden states"""
    cache: Cache
    """keys and values of all S tokens"""


class Trunk:
    """A base model seen through a thought grid, during one forward pass.

    Args:
        base_lm: a decoder-only model with its LM head.
        attention: how it attends over a grid.
        adapts_branches: False leaves the adapters of branches off.
    """

    def __init__(self, base_lm: PreTrainedModel, attention: AttentionBackend, adapts_branches: bool = True) -> None:
        self.base_lm = base_lm
        self.attention = attention
        self.adapts_branches = adapts_branches
        self.embed = LookUps(base_lm.get_input_embeddings())
        """[...] token ids -> [..., D]"""
        self.head = self._lm_head()
        """weight and bias of the LM head, for work over the vocabulary in blocks"""
        self.frequencies = Frequencies(base_lm)
        """rope frequencies of the text that is read, where they depend on its length"""
        self.keeps_hidden_states = False
        """whether the first pass, over the text, keeps the states of all layers in `hidden_states`"""
        self.hidden_states: tuple[Tensor, ...] = ()
        """[B, S, D] each: embeddings, then the output of each layer, the last after the final norm"""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the token embeddings."""
        return self.base_lm.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the token embeddings."""
        return self.base_lm.get_input_embeddings().weight.device

    @property
    def window(self) -> int | None:
        """Sliding window in tokens, of the layers that have one; None without."""
        return getattr(self.base_lm.config.get_text_config(), "sliding_window", None)

    def _lm_head(self) -> LMHead:
        config = self.base_lm.config.get_text_config()
        module = self.base_lm.get_output_embeddings()
        if is_plain(module, nn.Linear):
            weight, bias = whole(module).weight, module.bias
        else:  # an adapter, for example: applied to the identity, it gives its weight
            bias = module(torch.zeros(1, config.hidden_size, dtype=self.dtype, device=self.device))[0]
            identity = torch.eye(config.hidden_size, dtype=self.dtype, device=self.device)
            weight = (module(identity) - bias).T
        return LMHead(weight, bias, **self._logit_scaling)

    @property
    def _logit_scaling(self) -> dict[str, Any]:
        """What the base model does to the output of its LM head."""
        config = self.base_lm.config.get_text_config()
        return {
            "factor": getattr(config, "logit_scale", None) or 1.0,  # Cohere
            "divisor": getattr(config, "logits_scaling", None) or 1.0,  # Granite
            "softcap": getattr(config, "final_logit_softcapping", None),  # Gemma
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of states [..., D] after the final norm, as the base model itself does."""
        return scale_and_cap(self.base_lm.get_output_embeddings()(hidden), **self._logit_scaling)

    def read(self, text: Text) -> BasePass:
        """Run the base pass over new tokens; their keys and values are appended to the text's cache."""
        embeds = self.embed(text.input_ids)
        self.frequencies.choose(text.new_positions)
        h_base = self.base_pass(embeds, text.attention_mask, text.new_positions, text.cache)
        return BasePass(embeds=embeds, h_base=h_base, cache=text.cache)

    def base_pass(self, embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Cache) -> Tensor:
        """Return h_base [B, Q, D] of embeddings [B, Q, D]: the ordinary forward pass over a text.

        Its keys and values are appended to `cache`, under gradient checkpointing too.
        """
        how: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
        if torch.is_grad_enabled() and self._stores_keys and cache.get_seq_length() == 0:
            with self.attention.attending(self.base_lm):
                return self._states(embeds, attend_with=KeyStoringAttention(cache), **how)
        with self.without_checkpointing():
            return self._states(embeds, cache=cache, **how)

    def branch_cache(self, cache: Cache, grid: ThoughtGrid, rows: slice = slice(None), room: int = 0) -> BranchCache:
        """Return the keys and values of a base pass for branches to grow on, of the grid's rows; see BranchCache."""
        return BranchCache(cache, grid, branches_in_rows=self.attention.branches_in_rows, rows=rows, room=room)

    def in_branches(self) -> AbstractContextManager:
        """Return a context in which the adapters of branches are on."""
        return in_branches(self._branch_layers)

    @property
    def branches_differ(self) -> bool:
        """Whether text and branches go through different weights, and so never through one pass."""
        return bool(self._branch_layers)

    @functools.cached_property
    def _branch_layers(self) -> list[Any]:
        return branch_layers(self.base_lm) if self.adapts_branches else []

    def branch_pass(self, grid: ThoughtGrid, steps: range, embeds: Tensor, cache: BranchCache) -> Tensor:
        """Return states [T, P, C, D] of T steps of all branches from their embeddings, over cached keys and values."""
        if embeds.numel() == 0:  # no column anywhere
            return embeds
        position_ids = grid.branch_position_ids(steps)
        if self.attention.branches_in_rows:
            embeds, position_ids = (grid.to_rows(each, dim=2) for each in (embeds, position_ids))  # [B, T, P, N, ...]
        else:
            embeds, position_ids = embeds[None], position_ids[None]
        with self.without_checkpointing(), self.attention.attending(self.base_lm), self.in_branches():
            hidden = self._states(
                embeds.flatten(1, 3),
                position_ids=position_ids.flatten(1),
                cache=cache,
                **self.attention.pass_kwargs(grid, steps, cache, embeds.dtype),
            ).view(embeds.shape)
        return grid.from_rows(hidden, dim=2) if self.attention.branches_in_rows else hidden[0]

    @property
    def is_sharded(self) -> bool:
        """Whether all processes must make the same passes; see `quietstar.base.sharding`."""
        return is_sharded(self.base_lm)

    @property
    def is_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on: layers then drop every cache in passes with gradient."""
        return any(module.gradient_checkpointing and module.training for module in self._checkpointed)

    @property
    def grows_in_parts(self) -> bool:
        """Whether branches are recomputed in the backward pass, some columns at a time."""
        return torch.is_grad_enabled() and self.is_checkpointing

    @property
    def _stores_keys(self) -> bool:
        """Whether a hook stores the keys and values of recomputed layers, gradient included.

        It cannot where the attention cannot be hooked, with reentrant checkpoints, whose insides have no gradient,
        or where the code path depends on the name of the attention function, which is ours in the forward pass only.
        """
        if getattr(self.base_lm.config.get_text_config(), "reorder_and_upcast_attn", False):  # GPT-2
            return False
        functions = [getattr(module, "_gradient_checkpointing_func", None) for module in self._checkpointed]
        reentrant = any(getattr(function, "keywords", {}).get("use_reentrant", True) for function in functions)
        return self.is_checkpointing and not self.attention.branches_in_rows and not reentrant

    @contextmanager
    def without_checkpointing(self) -> Iterator[None]:
        """Switch gradient checkpointing off for passes that need their cache."""
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
        if not self.base_lm.training:  # checkpointing does nothing in evaluation
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
    """Raise SettingsError if rows of n_base tokens and their branches reach past learned positions."""
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
    """Return the name of the cache among the arguments of a base model's forward: transformers renamed it in 5.24."""
    return "cache" if "cache" in signature(base_model.forward).parameters else "past_key_values"
