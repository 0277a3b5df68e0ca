"""Refuse a base model that a thought grid does not work with."""

import logging

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from quietstar.attention import SplitAttention, attention_backend, default_backend
from quietstar.base.configs import OURS
from quietstar.base.loading import evaluating
from quietstar.base.rope import check_rope
from quietstar.base.sharding import has_weights, is_partitioned
from quietstar.base.trunk import Trunk
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, UnsupportedModelError, first_line
from quietstar.grid import ThoughtGrid

logger = logging.getLogger(__name__)


def best_backend(base_lm: PreTrainedModel) -> str:
    """Return the name of the attention backend for a base model: the default one, or dense if only that is right.

    Raises:
        UnsupportedModelError: neither is right.
    """
    backend = default_backend(base_lm)
    try:
        check_base(base_lm, backend)
    except UnsupportedModelError as error:
        if backend == "dense":
            raise
        check_base(base_lm, "dense")
        backend = "dense"
        logger.warning("%s; dense masks are used instead, slower", error)
    return backend


@torch.no_grad()
def check_base(base_lm: PreTrainedModel, backend: str) -> None:
    """Compare a small thought grid with a plain loop that grows one branch at a time as an ordinary sequence.

    The grid has two rows of a few tokens, one padded on the left, and is run step by step and in one pass: a base
    model that ignores its mask, its positions or its cache differs.

    Raises:
        SettingsError: it is a thinking model already.
        UnsupportedModelError: they differ, or the model does not accept what a grid needs.
        CheckpointError: the base model's own predictions are NaN.
    """
    family = base_lm.config.model_type
    if family == OURS:
        raise SettingsError("the base model is a thinking model; use it as it is, or give its base_lm")
    cannot = f"base model family {family!r} cannot be served with {backend} attention"
    if getattr(base_lm.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{cannot}: it is an encoder-decoder; choose a decoder-only model")
    if base_lm.get_output_embeddings() is None:
        raise UnsupportedModelError(f"the {family!r} model has no LM head; load it with AutoModelForCausalLM")
    if not has_weights(base_lm) or any(is_partitioned(parameter) for parameter in base_lm.parameters()):
        return
    check_rope(base_lm)
    try:
        with evaluating(base_lm):
            differences = _grid_differences(base_lm, backend)
    except QuietStarError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{cannot}: it does not take the embeddings, positions, masks or caches that a thought grid needs "
            f"({type(error).__name__}: {first_line(error)}); choose another base model"
        ) from error
    half = base_lm.dtype in (torch.float16, torch.bfloat16)
    for what, difference in differences.items():
        if not difference <= (0.1 if half else 1e-3):
            raise UnsupportedModelError(
                f"{cannot}: {what} differs from the model's own by {difference:.1g} of its size; "
                "choose another base model"
            )


@torch.no_grad()
def check_head(base_lm: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if a model does more to its last hidden state than `Trunk.logits` does."""
    input_ids = torch.arange(1, 5, device=base_lm.get_input_embeddings().weight.device)[None]
    with evaluating(base_lm):
        trunk = Trunk(base_lm, attention_backend("dense", base_lm))
        ours = trunk.logits(base_lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state)
        own = base_lm(input_ids=input_ids, use_cache=False).logits
    if not _relative(ours, own) <= (0.1 if base_lm.dtype in (torch.float16, torch.bfloat16) else 1e-3):
        raise UnsupportedModelError(
            f"the LM head of family {base_lm.config.model_type!r} does something to its logits that is not known here; "
            "choose another model"
        )


def _grid_differences(base_lm: PreTrainedModel, backend: str) -> dict[str, float]:
    attention = attention_backend(backend, base_lm)
    if isinstance(attention, SplitAttention):
        attention.few_branches = 0  # or so few branches would not be split
    trunk = Trunk(base_lm, attention, adapts_branches=False)  # the plain loop has one set of weights for all tokens
    device = base_lm.get_input_embeddings().weight.device
    V = base_lm.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    S, L, n_padded = 5, 3, 2
    input_ids = torch.randint(V, (2, S), generator=generator).to(device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :n_padded] = 0
    branches = trunk.embed(torch.randint(V, (L, 1, 3), generator=generator).to(device))  # [L, P, C, D]
    think_at = torch.zeros_like(input_ids)
    think_at[0, S - 3] = think_at[:, S - 1] = 1
    grid = ThoughtGrid.grow(think_at, attention_mask, n_passes=1, branch_length=L)
    embeds = trunk.embed(input_ids)

    cache = DynamicCache()
    h_base = trunk.base_pass(embeds, attention_mask, grid.base_position_ids, cache)
    grown = trunk.branch_cache(cache, grid)
    cached = torch.cat(
        [trunk.branch_pass(grid, range(step, step + 1), branches[step : step + 1], grown) for step in range(L)]
    )
    at_once = trunk.branch_pass(grid, range(L), branches, trunk.branch_cache(cache, grid))

    def plain(n: int) -> Tensor:
        row = int(grid.rows[n])
        text = embeds[row, (n_padded if row == 1 else 0) : int(grid.columns[n]) + 1]
        sequence = torch.cat([text, branches[:, 0, n]])[None]
        return base_lm.base_model(inputs_embeds=sequence).last_hidden_state[0, -L:]

    loop = torch.stack([plain(n) for n in range(grid.n_columns)], 1)[:, None]
    own_logits = base_lm(input_ids=input_ids, attention_mask=attention_mask).logits[0]
    if own_logits.isnan().any():
        raise CheckpointError(
            "the base model's own predictions are NaN: its weights are damaged, or its training diverged; load an "
            "earlier checkpoint, or train with a lower learning rate"
        )
    return {
        "a branch grown step by step": _relative(cached, loop),
        "a branch grown in one pass": _relative(at_once, loop),
        "a prediction from the last hidden state": _relative(trunk.logits(h_base)[0], own_logits),
    }


def _relative(ours: Tensor, theirs: Tensor) -> float:
    difference = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
    return float(difference)
