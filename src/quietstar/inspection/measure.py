"""Measure predictions at each position, and how two of them differ.

Legend: n states, C columns, S tokens, M true tokens after a thought, D hidden size, V vocabulary, k likeliest tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quietstar.base.vocabulary import STATES
from quietstar.evaluation.scoring import Speaker
from quietstar.inspection.reading import Reading
from quietstar.journal import TopTokens
from quietstar.learn import IGNORED
from quietstar.policy import entropy

NO_TARGET = -1
"""stands for a token that does not exist"""


def next_tokens(reading: Reading, labels: list[int] | None = None) -> Tensor:
    """Return [S]: the token that follows each position; NO_TARGET at the end, and where labels [S] ignore it."""
    ids = reading.input_ids
    if labels is not None:
        ids = ids.masked_fill(torch.tensor(labels, device=ids.device) == IGNORED, NO_TARGET)
    return torch.cat([ids[1:], ids.new_full((1,), NO_TARGET)])


@dataclass(slots=True)
class Look:
    """Measures of n predictions."""

    logprob: Tensor
    """[n]: of the true next token, in nats; NaN where there is none"""
    entropy: Tensor
    """[n], in nats"""
    top: TopTokens
    """[n, k]"""


def look(reading: Reading, states: Tensor, targets: Tensor, top_k: int) -> Look:
    """Measure the predictions of states [n, D], and the log-probabilities of targets [n]."""
    logprob, nats, ids, top = [], [], [], []
    for some in torch.arange(len(states)).split(STATES):
        logits = reading.logits(states[some])
        logprob.append(_of_targets(logits.log_softmax(-1), targets[some]))
        nats.append(entropy(logits))
        likeliest = TopTokens.of(logits, top_k)
        ids.append(likeliest.ids)
        top.append(likeliest.logprob)
    return Look(
        logprob=torch.cat(logprob),
        entropy=torch.cat(nats),
        top=TopTokens(ids=torch.cat(ids), logprob=torch.cat(top)),
    )


def true_logprob(reading: Reading | Speaker, states: Tensor, targets: Tensor) -> Tensor:
    """Return [n]: log-probabilities of targets [n] by states [n, D], in nats; NaN where there is no target."""
    parts = torch.arange(len(states)).split(STATES)
    return torch.cat([_of_targets(reading.logits(states[some]).log_softmax(-1), targets[some]) for some in parts])


@dataclass(slots=True)
class Effect:
    """What an intervention did to the predictions of the next token at C columns."""

    delta: Tensor
    """[C]: change in log-probability of the true next token, in nats; NaN where there is none"""
    kl: Tensor
    """[C]: KL(own || changed), in nats"""
    flips: Tensor
    """[C] bool: the likeliest token changed"""
    top: Tensor
    """[C]: the likeliest token with the change"""


def compare(reading: Reading, own: Tensor, changed: Tensor, targets: Tensor) -> Effect:
    """Compare the predictions of changed states [C, D] with the model's own [C, D]; targets are [C]."""
    delta, kl, flips, top = [], [], [], []
    for some in torch.arange(len(own)).split(STATES):
        before = reading.logits(own[some]).log_softmax(-1)
        after = reading.logits(changed[some]).log_softmax(-1)
        delta.append(_of_targets(after, targets[some]) - _of_targets(before, targets[some]))
        p = before.exp()
        # a token of probability 0 adds nothing
        kl.append(torch.where(p > 0, p * (before - after), 0).sum(-1).clamp(min=0))
        top.append(after.argmax(-1))
        flips.append(top[-1] != before.argmax(-1))
    return Effect(delta=torch.cat(delta), kl=torch.cat(kl), flips=torch.cat(flips), top=torch.cat(top))


def _of_targets(logprob: Tensor, targets: Tensor) -> Tensor:
    """Return [n]: of log-probabilities [n, V], those of targets [n]."""
    found = logprob.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return found.masked_fill(targets == NO_TARGET, torch.nan)
