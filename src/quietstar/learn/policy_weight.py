"""The weight of the policy loss beside the nll.

Legend: B examples.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quietstar.errors import SettingsError, shown


@dataclass(frozen=True, slots=True)
class PolicyWeight:
    """Weight of the policy loss beside the nll: a number, or `balanced:R`.

    `balanced:R` gives each row the weight at which the policy term's gradient at the row's hidden states has R times
    the norm of the nll's. Each row is balanced by itself, so that the weights do not depend on which rows share a
    batch, an accumulated step or a process.
    """

    value: float
    """the weight, or R"""
    is_balanced: bool = False

    @classmethod
    def parse(cls, setting: float | str) -> "PolicyWeight":
        """Parse a number of at least 0, or a string such as "30" or "balanced:0.1".

        Raises:
            SettingsError: the setting is neither.
        """
        kind, _, ratio = setting.partition(":") if isinstance(setting, str) else ("", "", "")
        is_balanced = kind == "balanced"
        try:
            value = float(ratio if is_balanced else setting)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if isinstance(setting, bool) or not 0 <= value < math.inf:
            raise SettingsError(
                f"policy_weight is {shown(setting)}; give a number of at least 0, or balanced:R, such as balanced:0.1, "
                "for a gradient R times as long as the nll's"
            )
        return cls(value, is_balanced)

    @property
    def setting(self) -> float | str:
        """The setting in a config, which `parse` reads."""
        return f"balanced:{self.value!r}" if self.is_balanced else self.value

    def balance(self, nll_gradient: Tensor, policy_gradient: Tensor) -> Tensor:
        """Return [B]: weights of rows that give the policy term's gradient R times the norm of the nll's.

        Args:
            nll_gradient: [B] squared norm of the nll's gradient at each row's hidden states.
            policy_gradient: [B] the same of the policy loss, at weight 1.
        """
        weights = self.value * (nll_gradient / policy_gradient).sqrt()
        return torch.where(policy_gradient > 0, weights, 0.0).clamp(max=HIGHEST_BALANCED_WEIGHT)


HIGHEST_BALANCED_WEIGHT = 1e4
"""Upper bound of a balanced weight: while the mixing head opens, rewards hardly differ, and an unbounded weight would
scale them up to a gradient of full norm."""
