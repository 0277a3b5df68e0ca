"""What a forward pass of a thinking model returns."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from quietstar.errors import SettingsError

ENDED = -1
"""in place of a token id in thoughts, after an early end"""

ABSENT: Any = None
"""value of a field that was not asked for"""

CACHE = "cache" if hasattr(ModelOutput, "past_key_values") else "past_key_values"
"""transformers' name for keys and values, from 5.24 on and before"""


@dataclass
class QuietStarOutput(ModelOutput):
    """What a forward pass returns. Tensors without a label, or without a thought, are 0 there and count nowhere.

    Attributes:
        loss: [] nll_weight x nll + policy_weight x policy_loss in training, else nll. In distillation, what
            a student, which does not think, learns from its teacher's predictions.
        logits: [B, S, V], mixed where a thought was written and the base model's own elsewhere.
        nll: [] negative log-likelihood of the labels, part without and part with thoughts, in nats.
        policy_loss: [] the REINFORCE term before its weight.
        base_nll: [B, S] -log p_base of the label at i+1.
        talk_nll: [B, P, S, M] -log p_mixed of the label at i+1+k.
        mixing_weight: [B, P, S, M]
        thought_logprob: [B, P, S, K] of each sampled token, and of going on or ending there, at the reinforce
            temperature.
        reward: [B, P, S] in nats, no gradient.
        advantage: [B, P, S], no gradient.
        drawn_logprob: [B, P, S, K] of each sampled token in the distribution that it was drawn from, with labels; None
            for greedy thoughts. Its mean, negated, estimates the entropy of that distribution.
        nll_gradient: [] squared norm of the nll's gradient at the hidden states, of a training step's `loss_only`.
        policy_gradient: [] the same of the weighted policy term.
        think_at: [B, S] bool, where a thought was written.
        thoughts: [B, P, S, K] token ids, sampled or as given, -1 after an early end; 0 where no thought was written.
        hidden_states: [B, S, D] each, where asked for: the base pass's embeddings, and states after each layer.
        cache: keys and values of the base tokens only; `past_key_values` is the same.
    """

    loss: Tensor = ABSENT
    logits: Tensor = ABSENT
    nll: Tensor = ABSENT
    policy_loss: Tensor = ABSENT
    base_nll: Tensor = ABSENT
    talk_nll: Tensor = ABSENT
    mixing_weight: Tensor = ABSENT
    thought_logprob: Tensor = ABSENT
    reward: Tensor = ABSENT
    advantage: Tensor = ABSENT
    drawn_logprob: Tensor = ABSENT
    nll_gradient: Tensor = ABSENT
    policy_gradient: Tensor = ABSENT
    think_at: Tensor = ABSENT
    thoughts: Tensor = ABSENT
    hidden_states: tuple[Tensor, ...] | None = None
    if CACHE == "cache":  # ModelOutput itself has the older name
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None

        @property
        def cache(self) -> Cache | None:
            """The same by its newer name."""
            return self.past_key_values


def tokens_of(thoughts: Tensor) -> list[list[int]]:
    """Return the tokens of each of n thoughts [n, K], up to its end."""
    return [[token for token in thought if token != ENDED] for thought in thoughts.tolist()]


def check_thoughts(thoughts: Tensor, vocab_size: int, *, may_end: bool) -> None:
    """Raise SettingsError if thoughts [..., K] are not token ids, with ENDED after the last one where `may_end`."""
    if thoughts.is_floating_point() or thoughts.dtype == torch.bool:
        raise SettingsError(f"thoughts are of {thoughts.dtype}; give token ids, as whole numbers")
    has_ended = thoughts == ENDED
    wrong = thoughts[~((thoughts >= 0) & (thoughts < vocab_size) | (has_ended & may_end))]
    if wrong.numel():
        ends = f", and {ENDED} in every place after its last token where one ends early" if may_end else ""
        alone = "; only thoughts of a model made with learn_to_end end early" if int(wrong[0]) == ENDED else ""
        raise SettingsError(f"thoughts hold {int(wrong[0])}; give token ids from 0 to {vocab_size - 1}{ends}{alone}")
    if (has_ended[..., :-1] & ~has_ended[..., 1:]).any():
        raise SettingsError(
            f"thoughts have a token after {ENDED}, which ends a thought; put {ENDED} in every place after the last one"
        )
