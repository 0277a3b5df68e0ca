"""What training minimises: losses and rewards of a forward pass's predictions, and their gradients.

Legend: B examples, S tokens in a row, P passes, C columns of all rows together, M true tokens after each thought,
K sampled tokens of a thought.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quietstar import learn
from quietstar.base.logprob import Descent, Scored, masked_logprob, squared_gradient
from quietstar.grid import ThoughtGrid
from quietstar.learn import PolicyWeight
from quietstar.output import QuietStarOutput
from quietstar.predict import Predictions
from quietstar.request import Request


def fill_in_losses(output: QuietStarOutput, predicted: Predictions, request: Request) -> None:
    """Fill in the losses and rewards of an output (arXiv 2403.09629, section 4.4).

    The policy loss is part of the loss in training alone. Of a `loss_only` request, gradients are computed along with
    the loss; see `QuietStarForCausalLM.forward`.

    Args:
        output: of the forward pass, with its mixing weights.
        predicted: states without and with thoughts.
        request: labels, their counts, and the config of the method.
    """
    grid, tokens, head, config = predicted.grid, predicted.thoughts.tokens, predicted.trunk.head, request.config
    P, loss_only = grid.n_passes, request.loss_only
    labels = request.labels_ahead(grid.is_column)
    counts = labels.count() if request.counts is None else request.counts
    descent = Descent(head) if loss_only and Descent.serves(head) else None

    base_weights, talk_weights = learn.nll_weights(labels, counts, P, config.base_loss_weight)
    base = Scored(predicted.h_base, labels.ahead[..., 0], labels.base, base_weights)
    output.base_nll = -masked_logprob(head, base, descent)
    ahead, at_columns = (grid.gather_columns(each).expand(P, -1, -1) for each in (labels.ahead, talk_weights))
    real = ahead != learn.IGNORED  # [P, C, M]
    talk = Scored(predicted.said.mixed, ahead, real, at_columns)
    output.talk_nll = -grid.scatter_columns(masked_logprob(head, talk, descent))
    output.nll = learn.nll_loss(output.base_nll, output.talk_nll, (base_weights, talk_weights))

    output.reward = learn.reward(output.base_nll, output.talk_nll, labels)
    output.advantage = learn.advantage(output.reward)
    reinforced = learn.policy_weights(output.advantage, labels, counts, tokens.shape[-1])  # [B, P, S]
    at_columns = grid.gather_columns(reinforced.transpose(1, 2)).T[..., None].expand_as(tokens)  # [P, C, K]
    written = real.any(-1, keepdim=True).expand_as(tokens)
    if loss_only:
        written = written & (at_columns > 0)
    policy = Scored(
        predicted.said.branches.h_sampled,
        tokens,
        written,
        at_columns,
        config.reinforce_temperature,
        request.sampling.suppressed,
    )

    policy_weight = PolicyWeight.parse(config.policy_weight if request.is_training else 0.0)
    if policy_weight.is_balanced:
        if descent is not None:
            squared = [term.scattered(at) for term, at in zip((base, talk), descent.squared_gradients(), strict=True)]
        else:
            squared = [squared_gradient(head, term) for term in (base, talk)]
        nll_gradient = squared[0].sum(1) + _per_row(grid, squared[1])
        weights = policy_weight.balance(nll_gradient, _per_row(grid, squared_gradient(head, policy)))
    else:
        weights = torch.full((len(labels.base),), policy_weight.value, device=output.nll.device)  # [B]
    weighted = replace(policy, weights=at_columns * weights[grid.rows][:, None])
    thought_logprob = masked_logprob(head, weighted, descent)
    output.thought_logprob = grid.scatter_columns(thought_logprob)
    output.policy_loss = learn.policy_loss(output.thought_logprob, reinforced)
    output.loss = output.nll + learn.policy_loss(output.thought_logprob, reinforced * weights[:, None, None])
    if descent is not None:
        *of_nll, of_policy = descent.squared_gradients()
        output.nll_gradient, output.policy_gradient = torch.cat(of_nll).sum(), of_policy.sum()
        output.loss = descent.attach(output.loss)
    if predicted.thoughts.logprob is not None:
        output.drawn_logprob = grid.scatter_columns(predicted.thoughts.logprob)
    # a mixing weight that no loss uses is 0
    output.mixing_weight = output.mixing_weight * labels.talk[:, None]


def _per_row(grid: ThoughtGrid, at_branches: Tensor) -> Tensor:
    """Return [B]: sums of [P, C, ...] over the branches of each row."""
    of_columns = at_branches.sum(tuple(range(2, at_branches.dim()))).sum(0)
    return of_columns.new_zeros(grid.batch_size).index_add(0, grid.rows, of_columns)
