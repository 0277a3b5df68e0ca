"""Think when it pays: policies decide at each position of each row whether to think there.

    always, never                everywhere, nowhere
    every:4                      after every fourth token of a row
    probability:0.25             after a quarter of the tokens, chosen at random
    entropy:2.5                  where the base prediction's entropy is at least 2.5 nats
    margin:0.2                   where its two likeliest tokens lie at most 0.2 apart in probability
    mixing_head:0.1              where the mixing head, shown the base state alone, gives 0.1 or more
    budget:16                    16 thoughts in each sequence at most
    entropy:2.5,budget:16        where all of these agree

Any function of a Moment that returns [N] bool is a policy too.

Legend: B rows, N positions that are decided about, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quietstar.base.draws import Generators, uniform
from quietstar.errors import SettingsError, did_you_mean

STATES_AT_ONCE = 256
"""states whose predictions over the vocabulary are computed at once"""


@dataclass(slots=True)
class Moment:
    """What a policy may look at: N positions, in order along each row, without gradient."""

    rows: Tensor
    """[N]: row of each position"""
    position_ids: Tensor
    """[N]: 0 at a row's first token"""
    n_thoughts: Tensor
    """[B]: thoughts that each row has had before these positions"""
    h_base: Tensor
    """[N, D]: base states; [0, D] if the policy does not need them"""
    to_logits: Callable[[Tensor], Tensor] = field(repr=False)
    """LM head: [n, D] -> [n, V]"""
    to_weight: Callable[[Tensor, Tensor], Tensor] | None = field(repr=False)
    """mixing head: states without and after a thought, [n, D] each -> [n, 1]; None of a plain model"""
    generator: Generators = None
    """source of random numbers, on the positions' device"""
    _base_logits: Tensor | None = field(default=None, init=False, repr=False)
    """[N, V] in float32, once `look` has computed them"""

    def look(self, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """Return [N]: a measure of the base predictions, a function of logits, [n, V] in float32 -> [n]."""
        if self._base_logits is None and len(self.h_base) <= STATES_AT_ONCE:
            self._base_logits = self.to_logits(self.h_base).float()
        if self._base_logits is not None:
            return measure(self._base_logits)
        return torch.cat([measure(self.to_logits(some).float()) for some in self.h_base.split(STATES_AT_ONCE)])

    def base_weight(self) -> Tensor:
        """Return [N]: the mixing weights for a thought that changes nothing, as the head sees the base state alone."""
        assert self.to_weight is not None, "a plain model has no mixing head"
        return self.to_weight(self.h_base, self.h_base).squeeze(-1)

    def earlier(self, agreed: Tensor) -> Tensor:
        """Return [N]: thoughts of a position's row before it, including those agreed to in this moment, [N] bool."""
        taken = torch.zeros_like(self.rows)
        for row in self.rows.unique().tolist():
            here = self.rows == row
            taken[here] = agreed[here].long().cumsum(0) - agreed[here].long()
        return taken + self.n_thoughts[self.rows]


def entropy(logits: Tensor) -> Tensor:
    """Return the entropies [n] of predictions [n, V], in nats."""
    return torch.distributions.Categorical(logits=logits, validate_args=False).entropy()


def margin(logits: Tensor) -> Tensor:
    """Return [n]: the differences in probability of the two likeliest tokens of predictions [n, V]."""
    first, second = logits.softmax(-1).topk(2).values.unbind(-1)
    return first - second


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of rule."""

    measure: Callable[[Moment, Tensor], Tensor]
    """moment, [N] bool agreed to by the other rules -> [N] measured"""
    holds: Callable[[Tensor, float], Tensor]
    """[N] measured, the rule's number -> [N] bool: think"""
    says: str
    """template of the reason: what was measured, and the rule's number"""
    lowest: float | None = None
    """of the rule's number; None for a rule without a number"""
    highest: float = float("inf")
    whole: bool = False
    """whether the number must be an integer"""
    needs_base: bool = False
    """whether it needs the base states, and decides after the base pass"""


def _nothing(moment: Moment, agreed: Tensor) -> Tensor:
    return torch.zeros_like(moment.position_ids, dtype=torch.float32)


KINDS = {
    "always": Kind(_nothing, lambda value, _: torch.ones_like(value, dtype=torch.bool), "always"),
    "never": Kind(_nothing, lambda value, _: torch.zeros_like(value, dtype=torch.bool), "never"),
    "every": Kind(
        lambda moment, _: (moment.position_ids + 1).float(),
        lambda count, k: count % k == 0,
        "token {0:.0f}, every {1:.0f}",
        lowest=1,
        whole=True,
    ),
    "probability": Kind(
        lambda moment, _: uniform(tuple(moment.rows.shape), moment.generator, moment.rows.device),
        lambda value, p: value < p,
        "drew {0:.2f}, below {1:g} thinks",
        lowest=0,
        highest=1,
    ),
    "entropy": Kind(
        lambda moment, _: moment.look(entropy),
        lambda nats, least: nats >= least,
        "entropy {0:.2f}, from {1:g} on",
        lowest=0,
        needs_base=True,
    ),
    "margin": Kind(
        lambda moment, _: moment.look(margin),
        lambda apart, most: apart <= most,
        "margin {0:.2f}, up to {1:g}",
        lowest=0,
        highest=1,
        needs_base=True,
    ),
    "mixing_head": Kind(
        lambda moment, _: moment.base_weight(),
        lambda weight, least: weight >= least,
        "mixing head {0:.2f}, from {1:g} on",
        lowest=float("-inf"),
        needs_base=True,
    ),
    "budget": Kind(
        lambda moment, agreed: moment.earlier(agreed).float(),
        lambda had, most: had < most,
        "{0:.0f} thoughts had, up to {1:.0f}",
        lowest=0,
        whole=True,
    ),
}
"""rules by name"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One part of a policy, such as entropy:2.5."""

    name: str
    number: float = 0.0

    @property
    def kind(self) -> Kind:
        """The kind of rule that its name stands for."""
        return KINDS[self.name]

    def __str__(self) -> str:
        return self.name if self.kind.lowest is None else f"{self.name}:{self.number:g}"


@dataclass(slots=True)
class Decision:
    """What a policy decided about N positions."""

    think: Tensor
    """[N] bool"""
    measured: list[Tensor] = field(default_factory=list)
    """[N] for each rule, in the policy's order"""
    base_logits: Tensor | None = None
    """[N, V]: the base predictions, if the policy has looked at them; None if it has not, or at too many at once"""


Decider = Callable[[Moment], Tensor]
"""any function as a policy: -> [N] bool"""


@dataclass(frozen=True)
class ThinkPolicy:
    """Rules that must all agree, or a function.

    Args:
        rules: budgets count what the others agree to, whatever their order.
        function: decides instead of rules, after the base pass.
    """

    rules: tuple[Rule, ...] = ()
    function: Decider | None = None

    @classmethod
    def parse(cls, policy: "str | Decider | ThinkPolicy") -> "ThinkPolicy":
        """Return the policy that is written as, for example, `entropy:2.5,budget:16`, or that a function is.

        Raises:
            SettingsError: it is not a policy.
        """
        if isinstance(policy, ThinkPolicy):
            return policy
        if callable(policy):
            return cls(function=policy)
        if not isinstance(policy, str):
            raise SettingsError(f"think is {policy!r}; give a policy such as 'entropy:2.5', or a function of a Moment")
        return cls(rules=tuple(_parse_rule(part.strip(), policy) for part in policy.split(",")))

    def __str__(self) -> str:
        if self.function is not None:
            return getattr(self.function, "__name__", type(self.function).__name__)
        return ",".join(map(str, self.rules))

    @property
    def is_always(self) -> bool:
        """Whether it allows everything."""
        return all(rule.name == "always" for rule in self.rules) and self.function is None

    @property
    def needs_base(self) -> bool:
        """Whether it decides after the base pass."""
        return self.function is not None or any(rule.kind.needs_base for rule in self.rules)

    @property
    def depends_on_history(self) -> bool:
        """Whether it depends on how many thoughts a row has had."""
        return self.function is not None or any(rule.name == "budget" for rule in self.rules)

    @torch.no_grad()
    def decide(self, moment: Moment) -> Decision:
        """Decide about the positions of a moment.

        Raises:
            SettingsError: a function did not return [N] bool.
        """
        if self.function is not None:
            return Decision(self._ask(self.function, moment), base_logits=moment._base_logits)
        agreed = torch.ones_like(moment.rows, dtype=torch.bool)
        measured: dict[Rule, Tensor] = {}
        for rule in sorted(self.rules, key=lambda rule: rule.name == "budget"):
            measured[rule] = rule.kind.measure(moment, agreed)
            agreed = agreed & rule.kind.holds(measured[rule], rule.number)
        return Decision(agreed, [measured[rule] for rule in self.rules], moment._base_logits)

    def _ask(self, function: Decider, moment: Moment) -> Tensor:
        think = function(moment)
        if not isinstance(think, Tensor) or think.shape != moment.rows.shape or think.dtype != torch.bool:
            given = f"{list(think.shape)} {think.dtype}" if isinstance(think, Tensor) else type(think).__name__
            raise SettingsError(f"think policy {self} returned {given}; return [{len(moment.rows)}] bool")
        return think

    def reason(self, measured: list[float]) -> str:
        """Return why it thought at one position, or did not: what its rules measured there."""
        if self.function is not None:
            return str(self)
        pairs = zip(self.rules, measured, strict=True)
        return "; ".join(rule.kind.says.format(value, rule.number) for rule, value in pairs)


def _parse_rule(text: str, policy: str) -> Rule:
    name, _, number = text.partition(":")
    if name not in KINDS:
        hint = did_you_mean(name, KINDS)
        raise SettingsError(f"think policy {policy!r} has {text!r}; choose from {', '.join(KINDS)}{hint}")
    kind = KINDS[name]
    if kind.lowest is None:
        if number:
            raise SettingsError(f"think policy {policy!r} has {text!r}; {name} takes no number")
        return Rule(name)
    what = "whole number" if kind.whole else "number"
    bounds = f" from {kind.lowest:g}" if kind.lowest > float("-inf") else ""
    bounds += f" to {kind.highest:g}" if kind.highest < float("inf") else " up" if bounds else ""
    wanted = f"think policy {policy!r} has {text!r}; give {name} a {what}{bounds}, such as {name}:"
    wanted += "4" if kind.whole else "0.2"
    try:
        value = float(number)
    except ValueError:
        raise SettingsError(wanted) from None
    if not kind.lowest <= value <= kind.highest or abs(value) == float("inf") or (kind.whole and value % 1):
        raise SettingsError(wanted)
    return Rule(name, value)
