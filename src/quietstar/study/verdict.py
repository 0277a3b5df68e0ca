"""The verdict in plain words, from the figures alone: beside which controls thoughts help, and by how much."""

from quietstar.inspection.interventions import REMOVED
from quietstar.reporting.interval import Estimate
from quietstar.study.arms import THINKING
from quietstar.study.comparison import ALL_TOKENS, Comparison, Difference, Replaced

NEEDED = ("filler", "no-policy", "finetune-compute")
"""READY controls without which nobody can say that thoughts pay"""


def verdict(found: Comparison, differences: list[Difference], replaced: list[Replaced]) -> list[str]:
    """Return sentences about every arm whose thoughts are reinforced, then about what the study cannot say."""
    sentences: list[str] = []
    for arm in (name for name in found.recipe.candidates if name in found.by_arm):
        sentences += of_arm(arm, [each for each in differences if each.arm == arm and each.where == ALL_TOKENS], found)
        sentences += _content(arm, [each for each in replaced if each.arm == arm])
    sentences += _limits(found, differences)
    return sentences


def of_arm(arm: str, differences: list[Difference], found: Comparison) -> list[str]:
    """Return the sentences about one arm; it helps only if it is better than every control."""
    controls = [each for each in differences if found.recipe.arms[each.control].is_control]
    if not controls:
        return [f"{arm}: there is no control to compare it with."]
    better = [each for each in controls if each.estimate.low > 0]
    worse = [each for each in controls if each.estimate.high < 0]
    undecided = [each for each in controls if each not in better and each not in worse]
    missing = [name for name in NEEDED if name not in {each.control for each in controls}]
    if not better:
        first = "thoughts do not help: it is better than no control"
    elif len(better) < len(controls):
        names = [each.control for each in worse + undecided]
        first = f"thoughts have not been shown to help: {_and(names)} {_do(names)} as well or better"
    elif missing:
        first = f"better than every control that was run, but without {_and(missing)} nobody can say that thoughts help"
    else:
        first = "thoughts help: it is better than every control"
    kinds = {"better than": better, "no difference shown beside": undecided, "worse than": worse}
    return [f"{arm}: {first}."] + [
        f"{arm}: {words} {'; '.join(f'{each.control} {nats(each.estimate)}' for each in some)}."
        for words, some in kinds.items()
        if some
    ]


def _content(arm: str, replaced: list[Replaced]) -> list[str]:
    """Return a sentence about what an arm's own thoughts are worth once it is trained."""
    if not replaced:
        return []
    worth = "; ".join(f"{each.intervention} {nats(each.estimate)}" for each in replaced)
    others = [each for each in replaced if each.intervention != REMOVED]
    matters = all(each.estimate.low > 0 for each in others)
    said = "matters" if matters else "has not been shown to matter"
    return [f"{arm}: what its trained model thinks {said}. Nats a token lost with other thoughts in place: {worth}."]


def _limits(found: Comparison, differences: list[Difference]) -> list[str]:
    """Return sentences about what the study cannot say."""
    limits = []
    n_seeds = {each.n_seeds for each in differences}
    if n_seeds == {1}:
        limits.append("One seed was run: the intervals are over texts alone, and another seed may say otherwise.")
    base_moves = [name for name, arm in found.recipe.arms.items() if arm.kind == THINKING and name in found.by_arm]
    if base_moves and "finetune-compute" not in found.by_arm:
        limits.append("No arm spent the same compute without thoughts.")
    return limits


def nats(estimate: Estimate) -> str:
    """Return a difference in nats a token with its interval."""
    return f"{estimate.value:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _do(names: list[str]) -> str:
    return "does" if len(names) == 1 else "do"
