"""Predictions of a model before it was trained: by its base model without adapters, or by a given plain model.

Legend: S tokens of a text.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.base.checks import check_head
from quietstar.base.ids import n_embeddings
from quietstar.base.loading import evaluating, holds_thinking_model
from quietstar.base.lora import without_adapters
from quietstar.base.trunk import check_reach
from quietstar.errors import SettingsError
from quietstar.evaluation.scoring import Speaker
from quietstar.inference.loading import UseArguments, load_model
from quietstar.inspection.measure import true_logprob
from quietstar.inspection.reading import Reading
from quietstar.model import QuietStarForCausalLM

ADAPTERS_OFF = "the base model without its adapters"


def load_before(
    before: str | Path | PreTrainedModel,
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load and check the plain model that a thinking one was trained from.

    Given by folder or hub name, it is loaded in the dtype and onto the device of `model`.

    Raises:
        SettingsError: it thinks, has other tokens, or is `model`'s own base model.
        CheckpointError: no model or no tokenizer of that name can be loaded.
        UnsupportedModelError: its LM head is not supported.
    """
    if isinstance(before, QuietStarForCausalLM) or (isinstance(before, str | Path) and holds_thinking_model(before)):
        raise SettingsError(
            f"before is a thinking model ({_name(before)}); give the plain model that this one was trained from"
        )
    if before is model.base_lm:
        raise SettingsError(
            "before is this model's own base_lm, which was trained with it; give the plain model as it was before "
            "training, or its name"
        )
    if isinstance(before, PreTrainedModel):
        if n_embeddings(before) != n_embeddings(model):
            raise SettingsError(
                f"before has {n_embeddings(before)} embeddings and the model {n_embeddings(model)}; give the plain "
                "model that this one was trained from"
            )
        check_head(before)
        return before
    if not isinstance(before, str | Path):
        raise SettingsError(f"before is a {type(before).__name__}; give a model of transformers, or its name")
    args = UseArguments(
        dtype=str(model.base_lm.dtype).removeprefix("torch."),
        device=str(model.device),
        trust_remote_code=trust_remote_code,
    )
    base_lm, its_tokenizer = load_model(before, args, original=True)
    check_same_tokens(tokenizer, its_tokenizer, str(before))
    return base_lm


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str) -> None:
    """Raise SettingsError if an id that both tokenizers have means different tokens."""
    ours, theirs = ({id: token for token, id in each.get_vocab().items()} for each in (tokenizer, other))
    shared = sorted(ours.keys() & theirs.keys())
    differing = next((id for id in shared if ours[id] != theirs[id]), None)
    if differing is not None:
        raise SettingsError(
            f"before is {name!r}, which has another vocabulary: its token {differing} is {theirs[differing][:40]!a}, "
            f"not {ours[differing][:40]!a}; give the plain model that this one was trained from"
        )


def check_texts(before: PreTrainedModel, texts: Sequence[list[int]]) -> None:
    """Raise SettingsError if a text has a token that the model before training lacks, or is too long for it."""
    highest = max(max(ids, default=0) for ids in texts)
    if highest >= n_embeddings(before):
        raise SettingsError(
            f"the text has token {highest}, but before has {n_embeddings(before)} embeddings; give the plain model "
            "that this one was trained from"
        )
    check_reach(before, max(map(len, texts)), 0)


def description(model: QuietStarForCausalLM, before: PreTrainedModel | None) -> str | None:
    """Return the name of the model before training for reports, or None if it is not known."""
    if before is not None:
        return _name(before)
    return ADAPTERS_OFF if model.config.lora is not None else None


def _name(before: str | Path | PreTrainedModel) -> str:
    return str(before.name_or_path or type(before).__name__) if isinstance(before, PreTrainedModel) else str(before)


@torch.no_grad()
def logprob_before(
    model: QuietStarForCausalLM, before: PreTrainedModel | None, reading: Reading, targets: Tensor
) -> Tensor:
    """Return the log-probabilities [S] of targets [S] before training, in nats; NaN if unknown."""
    if before is not None:
        return _by_plain_model(before, reading.input_ids, targets)
    if model.config.lora is None:
        return torch.full(targets.shape, torch.nan)
    with without_adapters(model.base_lm):
        untouched = Reading(model, reading.input_ids)
        return true_logprob(untouched, untouched.h_base, targets)


def _by_plain_model(before: PreTrainedModel, input_ids: Tensor, targets: Tensor) -> Tensor:
    with evaluating(before):
        speaker = Speaker(before)
        ids = input_ids[None].to(speaker.device)
        states, *_ = speaker.states(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
        return true_logprob(speaker, states, targets.to(states.device))
