"""The verdict in plain words, from the figures alone: beside which controls thoughts help, by how much, and where not."""

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
    better = [each for each in controls if each.estimate.low > 0]
    worse = [each for each in controls if each.estimate.high < 0]
    open_ = [each for each in controls if each not in better and each not in worse]
    missing = [name for name in NEEDED if name not in {each.control for each in controls}]
    if not controls:
        return [f"{arm}: there is no control to compare it with."]
    if len(better) == len(controls) and not missing:
        first = f"{arm}: thoughts help. Held-out text is likelier than with every control."
    elif len(better) == len(controls):
        first = f"{arm}: better than every control that was run, but {_and(missing)} {_was(missing)} not: nobody can say yet that thoughts help."
    elif not better:
        first = f"{arm}: thoughts do not help: it is better than no control."
    else:
        first = f"{arm}: thoughts have not been shown to help: {_and([each.control for each in worse + open_])} {_does(worse + open_)} as well or better."
    lines = [first]
    for words, some in (("better than", better), ("no difference shown beside", open_), ("worse than", worse)):
        if some:
            lines.append(f"{arm}: {words} {'; '.join(f'{each.control} ({nats(each.estimate)})' for each in some)}.")
    return lines


def _content(arm: str, replaced: list[Replaced]) -> list[str]:
    """Return a sentence about what the content of an arm's own thoughts is worth."""
    if not replaced:
        return []
    by_name = {each.intervention: each.estimate for each in replaced}
    matters = [name for name, each in by_name.items() if each.low > 0]
    no = [name for name in by_name if name not in matters]
    worth = "; ".join(f"{name} ({nats(by_name[name])})" for name in by_name)
    said = "matter" if not no else "do not matter" if not matters else "matter in part"
    return [f"{arm}: the trained model's own thoughts {said}: what they are worth beside thoughts that are {worth}."]


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
    return f"{estimate.value:+.4f}, {estimate.low:+.4f} to {estimate.high:+.4f}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _was(names: list[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _does(some: list[Difference]) -> str:
    return "does" if len(some) == 1 else "do"
