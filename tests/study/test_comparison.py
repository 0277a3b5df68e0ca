"""Comparisons pair seeds and tokens; differences, hard tokens and verdicts against plain computations."""

import itertools

import pytest
import torch

from quietstar.study.arms import READY
from quietstar.study.comparison import ALL_TOKENS, HARD_TOKENS, Comparison, hardest, paired
from quietstar.study.measure import Measured
from quietstar.study.recipe import Recipe
from quietstar.study.verdict import verdict

LENGTHS = [3, 5, 4, 6, 2, 7, 5, 4, 6, 3, 8, 5]
CONTROLS = ["base", "finetune-compute", "filler", "no-policy"]


def recipe_of(*arms: str) -> Recipe:
    return Recipe(
        model="m", dataset="d", selection="s", test="t", seeds=(0, 1, 2), arms={name: READY[name] for name in arms}
    )


def record(arm: str, seed: int | None, level: float, spread: float = 0.02, interventions: float = 0.1) -> Measured:
    """Tokens that are as hard in every arm, and as likely as `level` says, but for noise of the seed."""
    common, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(hash_of(arm) + (seed or 0))
    of_text = [torch.rand(n, generator=common, dtype=torch.float64) for n in LENGTHS]
    noise = [spread * torch.randn(n, generator=own, dtype=torch.float64) for n in LENGTHS]
    return Measured(
        arm=arm,
        seed=seed,
        nll=[(level + text + each).tolist() for text, each in zip(of_text, noise, strict=True)],
        entropy=[text.tolist() for text in of_text] if arm == "base" else None,
        interventions={"removed": [[-interventions] * 4] * 3, "filler": [[-interventions] * 4] * 3}
        if arm == "quietstar"
        else {},
    )


def hash_of(name: str) -> int:
    return 100 * sum(map(ord, name))


def study_of(levels: dict[str, float], seeds: tuple[int, ...] = (0, 1, 2), **how: float) -> Comparison:
    records = [record("base", None, levels["base"])]
    records += [record(arm, seed, levels[arm], **how) for seed in seeds for arm in levels if arm != "base"]
    return Comparison(recipe_of(*levels), records)


def said(found: Comparison) -> list[str]:
    return verdict(found, found.differences(), found.replaced())


def test_hard_tokens_are_the_fifth_with_the_highest_entropy() -> None:
    entropy = record("base", None, 1.0).entropy
    masks = hardest(entropy)
    flat = sorted(itertools.chain(*entropy), reverse=True)
    n = round(0.2 * len(flat))
    assert sum(int(mask.sum()) for mask in masks) == n
    hard = torch.cat([torch.tensor(row, dtype=torch.float64)[mask] for row, mask in zip(entropy, masks, strict=True)])
    assert hard.sort(descending=True).values.tolist() == flat[:n]


def test_a_difference_is_that_of_means_over_tokens_seed_by_seed() -> None:
    found = study_of({"base": 1.0, "filler": 0.9, "quietstar": 0.7})
    for each in found.differences():
        ours, theirs = paired(found.by_arm["quietstar"], found.by_arm[each.control])
        mask = found.masks[each.where]
        tokens = [
            [
                (other - own)
                for own_row, other_row, of_row in zip(mine.nll, control.nll, mask, strict=True)
                for own, other, counts in zip(own_row, other_row, of_row.tolist(), strict=True)
                if counts
            ]
            for mine, control in zip(ours, theirs, strict=True)
        ]
        expected = sum(sum(row) / len(row) for row in tokens) / len(tokens)
        assert each.estimate.value == pytest.approx(expected), each.where
        assert each.n_seeds == 3
    assert {each.where for each in found.differences()} == {ALL_TOKENS, HARD_TOKENS}
    assert {each.control for each in found.differences()} == {"base", "filler"}


def test_only_seeds_that_both_arms_have_are_paired() -> None:
    ours, theirs = paired(
        [record("quietstar", seed, 1.0) for seed in (0, 2)], [record("filler", seed, 1.0) for seed in (2, 1)]
    )
    assert [each.seed for each in ours] == [each.seed for each in theirs] == [2]
    ours, theirs = paired([record("quietstar", seed, 1.0) for seed in (0, 2)], [record("base", None, 1.0)])
    assert [each.seed for each in theirs] == [None, None]


def test_a_planted_effect_is_called_help() -> None:
    levels = dict.fromkeys(CONTROLS, 1.0) | {"quietstar": 0.95}
    sentences = said(study_of(levels))
    assert sentences[0] == "quietstar: thoughts help: it is better than every control."
    assert "better than base +0.05" in sentences[1]
    assert sentences[2].startswith("quietstar: what its trained model thinks matters.")


def test_thoughts_never_help_where_filler_does_as_well() -> None:
    levels = dict.fromkeys(CONTROLS, 1.0) | {"filler": 0.95, "quietstar": 0.95}
    first, *others = said(study_of(levels))
    assert first == "quietstar: thoughts have not been shown to help: filler does as well or better."
    assert any("no difference shown beside filler" in each for each in others)


def test_a_null_is_called_null() -> None:
    first, *_ = said(study_of(dict.fromkeys(CONTROLS, 1.0) | {"quietstar": 1.0}, interventions=0.0))
    assert first == "quietstar: thoughts do not help: it is better than no control."


def test_nobody_says_that_thoughts_help_without_the_controls() -> None:
    first, *others = said(study_of({"base": 1.0, "filler": 1.0, "quietstar": 0.9}))
    assert first.startswith(
        "quietstar: better than every control that was run, but without no-policy and finetune-comp"
    )
    assert "No arm spent the same compute without thoughts." in others


def test_one_seed_is_said_to_be_one() -> None:
    sentences = said(study_of({"base": 1.0, "filler": 1.0, "quietstar": 0.9}, seeds=(1,)))
    assert "One seed was run: the intervals are over texts alone, and another seed may say otherwise." in sentences
