"""What training minimises: losses and rewards of a forward pass's predictions, and their gradients.

Legend: B examples, S tokens in a row, P thoughts of each position, C columns of all rows together, M true tokens after
each thought, K sampled tokens of a thought.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from quietstar import learn
from quietstar.base.logprob import EagerGradients, Scored, masked_logprob, squared_gradient
from quietstar.base.vocabulary import LMHead
from quietstar.grid import ThoughtGrid
from quietstar.learn import PolicyWeight
from quietstar.output import ENDED, QuietStarOutput
from quietstar.predict import Predictions
from quietstar.request import Request


def fill_in_losses(output: QuietStarOutput, predicted: Predictions, request: Request) -> None:
    """Fill in the losses and rewards of an output (arXiv 2403.09629, section 4.4).

    The policy loss is part of the loss in training only. For a `loss_only` request, gradients are computed along with
    the loss; see `QuietStarForCausalLM.forward`.

    Args:
        output: of the forward pass, with its mixing weights.
        predicted: states without and with thoughts.
        request: labels, their counts, and the config of the method.
    """
    grid, tokens, head, config = predicted.grid, predicted.thoughts.tokens, predicted.trunk.head, request.config
    P, loss_only, rollout = grid.n_passes, request.loss_only, request.rollout
    labels = request.labels_ahead(grid.is_column)
    counts = labels.count() if request.counts is None else request.counts
    eager = EagerGradients(head) if loss_only and EagerGradients.possible(head) else None

    nll_weight = config.nll_weight if request.is_training else 1.0
    base_weights, talk_weights = learn.nll_weights(labels, counts, P, config.base_loss_weight)
    base = Scored(predicted.h_base, labels.ahead[..., 0], labels.base, nll_weight * base_weights)
    ahead, ahead_weights = (grid.gather_columns(each).expand(P, -1, -1) for each in (labels.ahead, talk_weights))
    is_real = ahead != learn.IGNORED  # [P, C, M]
    talk = Scored(predicted.said.mixed, ahead, is_real, nll_weight * ahead_weights)
    base_logprob, base_squared = _score(head, base, eager if nll_weight else None)
    talk_logprob, talk_squared = _score(head, talk, eager if nll_weight else None)
    output.base_nll, output.talk_nll = -base_logprob, -grid.scatter_columns(talk_logprob)
    output.nll = learn.nll_loss(output.base_nll, output.talk_nll, (base_weights, talk_weights))

    reference_nll = output.base_nll if rollout.reference_nll is None else rollout.reference_nll
    output.reward = learn.reward(reference_nll, output.talk_nll, labels)
    if config.length_price:
        lengths = grid.scatter_columns(predicted.thoughts.lengths)
        output.reward = output.reward - config.length_price * lengths * labels.talk.any(-1)[:, None]
    advantage = learn.advantage(output.reward, config.advantage) if rollout.advantage is None else rollout.advantage
    is_sampled = config.thought_source == "sampled"
    output.advantage = advantage * is_sampled
    shares = learn.thought_shares(labels, counts, P, tokens.shape[-1]) * is_sampled  # [B, 1, S]

    def policy_loss(thought_logprob: Tensor, shares: Tensor) -> Tensor:
        return learn.policy_loss(thought_logprob, output.advantage, shares, rollout)

    # the policy loss: find the weight of each row, then score the sampled tokens with it
    matters = _at_branches(grid, shares * ((output.advantage != 0) | (rollout.kl_weight != 0))).bool()
    is_scored = is_real.any(-1)[..., None] & (matters | (is_sampled and not loss_only))  # [P, C, 1]
    ends, slope_of_ends = _ends(predicted, config.reinforce_temperature, is_scored)
    sampled = _sampled_tokens(output, predicted, request, shares, is_scored, ends)
    policy_weight = PolicyWeight.parse(config.policy_weight if request.is_training else 0.0)
    if policy_weight.is_balanced:
        if eager is None:
            base_squared, talk_squared = squared_gradient(head, base), squared_gradient(head, talk)
        nll_gradient = base_squared.sum(1) + _per_row(grid, talk_squared)
        policy_squared = squared_gradient(head, sampled) + (sampled.weights * slope_of_ends).square()
        row_weights = policy_weight.balance(nll_gradient, _per_row(grid, policy_squared))
    else:
        row_weights = torch.full((len(labels.base),), policy_weight.value, device=output.nll.device)  # [B]
    sampled = replace(sampled, weights=sampled.weights * row_weights[grid.rows][:, None])
    thought_logprob, sampled_squared = _score(head, sampled, eager)
    output.thought_logprob = grid.scatter_columns(thought_logprob + ends)
    output.policy_loss = policy_loss(output.thought_logprob, shares)
    weighted_policy_loss = policy_loss(output.thought_logprob, shares * row_weights[:, None, None])
    output.loss = nll_weight * output.nll + weighted_policy_loss if nll_weight else weighted_policy_loss
    if eager is not None:
        output.nll_gradient = base_squared.sum() + talk_squared.sum()
        output.policy_gradient = sampled_squared.sum() + (sampled.weights * slope_of_ends).square().sum()
        # what ends a thought has its gradient by itself
        of_ends = weighted_policy_loss - weighted_policy_loss.detach() if ends.requires_grad else 0.0
        output.loss = eager.attach(output.loss) + of_ends
    if not nll_weight and predicted.trunk.is_sharded:
        # FSDP2 gathers a layer's weights for a backward pass when a gradient reaches the layer's output
        output.loss = output.loss + 0 * predicted.h_base.float().sum()
    if predicted.thoughts.logprob is not None:
        output.drawn_logprob = grid.scatter_columns(predicted.thoughts.logprob)
    elif rollout.drawn_logprob is not None:
        output.drawn_logprob = rollout.drawn_logprob
    # a mixing weight that no loss uses is 0
    output.mixing_weight = output.mixing_weight * labels.talk[:, None]


def _sampled_tokens(
    output: QuietStarOutput, predicted: Predictions, request: Request, shares: Tensor, is_scored: Tensor, ends: Tensor
) -> Scored:
    """Return the sampled tokens to score, with their weights in the policy loss.

    Args:
        output: with advantages.
        predicted: states that the tokens were sampled from.
        request: the config of the method, and what the policy loss compares with.
        shares: [B, 1, S] of each token in the policy loss.
        is_scored: [P, C, 1] thoughts whose tokens are scored.
        ends: [P, C, K] log-probabilities of ending there, or of not ending.
    """
    grid, tokens, rollout = predicted.grid, predicted.thoughts.tokens, request.rollout
    sampled = Scored(
        predicted.said.branches.h_sampled,
        tokens.clamp(min=0),
        is_scored & (tokens != ENDED),
        torch.zeros(()),
        request.config.reinforce_temperature,
        request.sampling.suppressed,
    )
    logprob = torch.zeros(tokens.shape, device=tokens.device)  # matters only if the policy loss bends
    if rollout.bends:
        with torch.no_grad():
            logprob = masked_logprob(predicted.trunk.head, sampled) + ends
    weights = learn.token_weights(grid.scatter_columns(logprob), output.advantage, shares, rollout)
    return replace(sampled, weights=_at_branches(grid, weights))


def _ends(predicted: Predictions, temperature: float, is_scored: Tensor) -> tuple[Tensor, Tensor]:
    """Return [P, C, K] each: log-probabilities of what was decided in each place, and their slopes in its end logit.

    In the place of each token, the thought did not end; in the next one it did. Both are 0 in later places, and
    everywhere if all thoughts have K tokens. Slopes have no sign, and no gradient.
    """
    tokens, logit = predicted.thoughts.tokens, predicted.said.branches.end_logit
    if logit is None:
        nothing = torch.zeros(tokens.shape, device=tokens.device)
        return nothing, nothing
    place, n = torch.arange(tokens.shape[-1], device=tokens.device), predicted.thoughts.lengths[..., None]
    decided = torch.where(place < n, -logit, logit) / temperature
    counts = (place <= n) & is_scored
    slope = (-decided.detach()).sigmoid() / temperature
    return torch.where(counts, logsigmoid(decided), 0.0), torch.where(counts, slope, 0.0)


def _score(head: LMHead, scored: Scored, eager: EagerGradients | None) -> tuple[Tensor, Any]:
    """Return log-probabilities [...], and the squared gradients at their states [...], 0 if not eager."""
    return (masked_logprob(head, scored), torch.zeros(())) if eager is None else eager.add(scored)


def _at_branches(grid: ThoughtGrid, everywhere: Tensor) -> Tensor:
    """Return [P, C, K]: values [B, P, S, K], or [B, P, S] as [P, C, 1], at the columns."""
    at_columns = grid.gather_columns(everywhere.transpose(1, 2)).transpose(0, 1)
    return at_columns if everywhere.dim() == 4 else at_columns[..., None]


def _per_row(grid: ThoughtGrid, at_branches: Tensor) -> Tensor:
    """Return [B]: sums of [P, C, ...] over the branches of each row."""
    of_columns = at_branches.sum(tuple(range(2, at_branches.dim()))).sum(0)
    return of_columns.new_zeros(grid.batch_size).index_add(0, grid.rows, of_columns)
