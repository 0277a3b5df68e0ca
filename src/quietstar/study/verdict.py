"""The verdict in plain words, from the figures alone: beside which controls thoughts help, and by how much."""

from quietstar.inspection.interventions import REMOVED
from quietstar.study.arms import CANDIDATE, NO_CONTENT, NOT_REINFORCED, SAME_COMPUTE
from quietstar.study.comparison import ALL_TOKENS, Comparison, Difference, Replaced

NEEDED = (NO_CONTENT, NOT_REINFORCED, SAME_COMPUTE)
"""roles of the controls that a study needs before it can say that thoughts help"""


def verdict(found: Comparison, differences: list[Difference], replaced: list[Replaced]) -> list[str]:
    """Return sentences about every arm whose thoughts are reinforced, the one that matters most first."""
    sentences: list[str] = []
    for arm in (name for name in found.recipe.candidates if name in found.by_arm):
        of_arm = [each for each in differences if each.arm == arm and each.where == ALL_TOKENS]
        controls = [each for each in of_arm if found.recipe.role(each.control) != CANDIDATE]
        worth = [each for each in replaced if each.arm == arm]
        sentences.append(f"{arm}: {headline(controls, worth, found)}.")
        sentences += [f"{arm}: {line}." for line in _details(controls, worth)]
    return sentences


def headline(controls: list[Difference], replaced: list[Replaced], found: Comparison) -> str:
    """Return what the study says of an arm: that thoughts help only where nothing speaks against it."""
    better, undecided, worse = sorted_by_sign(controls)
    roles = {found.recipe.role(each.control) for each in controls}
    missing = [role for role in NEEDED if role not in roles]
    single = [each.control for each in controls if each.n_seeds < 2]
    removed = [each.estimate for each in replaced if each.intervention == REMOVED]
    if not controls:
        return "there is no control to compare it with"
    if worse:
        return f"thoughts do not help: {_and(worse)} {'is' if len(worse) == 1 else 'are'} better"
    if not better:
        return "undecided: no difference shows beside any control"
    if undecided:
        return f"thoughts have not been shown to help: no difference shows beside {_and(undecided)}"
    if missing:
        return f"undecided: better than every control that was run, but no control has {_and(missing, 'or')}"
    if single:
        return f"better than every control, but {_and(single)} had one seed: another may say otherwise"
    if removed and removed[0].low <= 0:
        return (
            "undecided: better than every control, but no difference shows when its thoughts are removed, so that what "
            "it thinks may not be why"
        )
    return "thoughts help: it is better than every control"


def sorted_by_sign(controls: list[Difference]) -> tuple[list[str], list[str], list[str]]:
    """Return the controls that an arm is better than, those beside which no difference shows, and better ones."""
    better = [each.control for each in controls if each.estimate.low > 0]
    worse = [each.control for each in controls if each.estimate.high < 0]
    return better, [each.control for each in controls if each.control not in better + worse], worse


def _details(controls: list[Difference], replaced: list[Replaced]) -> list[str]:
    """Return the differences behind a headline, and what own thoughts are worth once the model is trained."""
    kinds = zip(("better than", "no difference shows beside", "worse than"), sorted_by_sign(controls), strict=True)
    by_name = {each.control: each for each in controls}
    lines = [f"{words} {'; '.join(_difference(by_name[name]) for name in names)}" for words, names in kinds if names]
    if replaced:
        worth = "; ".join(f"{each.intervention} {each.estimate.signed()}" for each in replaced)
        lines.append(f"nats a token that the trained model loses with its own thoughts replaced: {worth}")
    return lines


def _difference(each: Difference) -> str:
    return (
        f"{each.control} {each.estimate.signed()}{' with one seed, for other texts alone' if each.n_seeds < 2 else ''}"
    )


def _and(names: list[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
