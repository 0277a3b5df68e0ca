"""What a model predicted before it was trained: its base model without adapters, or a plain model that is given.

Legend: S tokens of a text.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.base.ids import n_embeddings
from quietstar.base.loading import check_head, holds_thinking_model
from quietstar.base.lora import without_adapters
from quietstar.base.trunk import check_reach
from quietstar.errors import SettingsError
from quietstar.evaluation.scoring import Speaker
from quietstar.inference.loading import UseArguments, load_model
from quietstar.inspection.measure import true_logprob
from quietstar.inspection.reading import Reading
from quietstar.model import QuietStarForCausalLM

ADAPTERS_OFF = "the base model with its adapters switched off"


def load_before(
    before: str | Path | PreTrainedModel,
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The plain model that a thinking one was trained from.

    Args:
        before: its folder or hub name, loaded in the dtype and onto the device of `model`; or the model itself.
        model: what it has become.
        tokenizer: of `model`.
        trust_remote_code: run code that lies beside `before` on the hub.

    Raises:
        SettingsError: it thinks, has other tokens, or is a part of `model` that was trained with it.
        CheckpointError: there is no model or no tokenizer of that name.
        UnsupportedModelError: its LM head does something that is not known here.
    """
    if isinstance(before, QuietStarForCausalLM) or (isinstance(before, str | Path) and holds_thinking_model(before)):
        raise SettingsError(
            f"before is a thinking model ({_name(before)}); give the plain model that this one was trained from"
        )
    if before is model.base_lm:
        raise SettingsError(
            "before is this model's own base_lm, which was trained with it; give the plain model as it was before, or "
            "its name"
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
    how = UseArguments(
        dtype=str(model.base_lm.dtype).removeprefix("torch."),
        device=str(model.device),
        trust_remote_code=trust_remote_code,
    )
    found, its_tokenizer = load_model(before, how, original=True)
    check_same_tokens(tokenizer, its_tokenizer, str(before))
    return found


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str) -> None:
    """Raise SettingsError where an id means another token to the model of that name; either may have further ids."""
    ours, theirs = ({id: token for token, id in each.get_vocab().items()} for each in (tokenizer, other))
    shared = sorted(ours.keys() & theirs.keys())
    differing = next((id for id in shared if ours[id] != theirs[id]), None)
    if differing is not None:
        raise SettingsError(
            f"before is {name!r}, whose token {differing} is {theirs[differing][:40]!a} and not "
            f"{ours[differing][:40]!a}: it has another vocabulary; give the plain model that this one was trained from"
        )


def check_texts(before: PreTrainedModel, texts: Sequence[list[int]]) -> None:
    """Raise SettingsError where a text has a token that the model before training lacks, or is too long for it."""
    highest = max(max(ids, default=0) for ids in texts)
    if highest >= n_embeddings(before):
        raise SettingsError(
            f"the text has token {highest}, and before has {n_embeddings(before)} embeddings; give the plain model "
            "that this one was trained from"
        )
    check_reach(before, max(map(len, texts)), 0)


def description(model: QuietStarForCausalLM, before: PreTrainedModel | None) -> str | None:
    """What stands for the model before it was trained; None where nothing does."""
    if before is not None:
        return _name(before)
    return ADAPTERS_OFF if model.config.lora is not None else None


def _name(before: str | Path | PreTrainedModel) -> str:
    return str(before.name_or_path or type(before).__name__) if isinstance(before, PreTrainedModel) else str(before)


@torch.no_grad()
def logprob_before(
    model: QuietStarForCausalLM, before: PreTrainedModel | None, reading: Reading, targets: Tensor
) -> Tensor:
    """[S]: log-probability of targets [S] before training, in nats; NaN where there is none, or it is not known."""
    if before is not None:
        return _by_plain_model(before, reading.input_ids, targets)
    if model.config.lora is None:
        return torch.full(targets.shape, torch.nan)
    with without_adapters(model.base_lm):
        untouched = Reading(model, reading.input_ids)
        return true_logprob(untouched, untouched.h_base, targets)


def _by_plain_model(before: PreTrainedModel, input_ids: Tensor, targets: Tensor) -> Tensor:
    was_training = before.training
    before.eval()
    try:
        speaker = Speaker(before)
        ids = input_ids[None].to(speaker.device)
        states, _, _ = speaker.states(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
        return true_logprob(speaker, states, targets.to(states.device))
    finally:
        before.train(was_training)
