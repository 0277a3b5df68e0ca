"""What a student learns from a teacher: losses of its base pass, by the teacher's predictions.

    kl, reverse_kl   mean over labels of the divergence from the teacher's prediction; see `base.divergence`
    fast             mean over labels of - (1 + w max(0, teacher's nll - own nll)) log p(label), w the reward weight:
                     the last stage of Fast Quiet-STaR by its text (arXiv 2505.17746), which reinforces the true token

Legend: B examples, S tokens in a row.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quietstar.base.divergence import Likeliest, Spoken, Target, divergence
from quietstar.base.logprob import Scored, masked_logprob
from quietstar.base.precision import product_dtype
from quietstar.learn import NO_ROLLOUT
from quietstar.learn.lesson import Lesson
from quietstar.objective import fill_in_losses
from quietstar.output import QuietStarOutput
from quietstar.predict import Predictions
from quietstar.request import Request


def fill_in(output: QuietStarOutput, predicted: Predictions, request: Request) -> None:
    """Fill in the losses of an output: those of the method, or of a lesson; all other figures then have no gradient."""
    lesson, head = request.rollout.lesson, predicted.trunk.head
    if lesson is None:
        fill_in_losses(output, predicted, request)
        return
    with torch.no_grad():
        fill_in_losses(output, predicted, replace(request, rollout=NO_ROLLOUT, loss_only=False))
    labels = request.labels_ahead(predicted.grid.is_column)
    counts = labels.count() if request.counts is None else request.counts
    where = labels.base
    if lesson.objective == "fast":
        assert lesson.nll is not None
        reward = (lesson.nll - output.base_nll).clamp(min=0)
        scored = Scored(predicted.h_base, labels.ahead[..., 0], where, torch.zeros(()))
        terms = -(1 + lesson.reward_weight * reward) * masked_logprob(head, scored)
    else:
        values = divergence(head, predicted.h_base[where], target_of(lesson, where), lesson.objective)
        terms = torch.zeros(where.shape, device=values.device).masked_scatter(where, values)
    output.loss = (terms * where).sum() / counts.base.clamp(min=1)


def target_of(lesson: Lesson, where: Tensor) -> Target:
    """Return a lesson's predictions where a mask [B, S] is true."""
    if lesson.hidden is not None:
        hidden = lesson.hidden.transpose(1, 2)[where].transpose(0, 1)
        return Spoken(lesson.head, hidden, product_dtype(lesson.head.weight))
    assert lesson.tokens is not None
    assert lesson.logprob is not None
    assert lesson.rest is not None
    return Likeliest(lesson.tokens[where], lesson.logprob[where], lesson.rest[where])
