"""Comparisons pair seeds and tokens; differences, hard tokens and verdicts against plain computations."""

import itertools

import pytest
import torch

from quietstar.errors import SettingsError
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


def test_shares_of_right_answers_lie_within_0_and_1_and_are_never_certain() -> None:
    found = {}
    for right in (0, 1, 64):
        records = [record("base", None, 1.0), record("quietstar", 0, 1.0)]
        for each in records:
            each.tasks = {"gsm8k": {"exact_match": [1.0] * right + [0.0] * (64 - right)}}
        levels = Comparison(recipe_of("base", "quietstar"), records).levels()
        found[right] = next(level.estimate for level in levels if level.where == "gsm8k, exact match")
    assert [estimate.value * 64 for estimate in found.values()] == [0, 1, 64]
    assert found[0].low == 0
    assert 0.05 < found[0].high < 0.06
    assert found[1].low == 0
    assert found[1].high < 0.06
    assert 0.94 < found[64].low < 0.95
    assert found[64].high == 1


def test_only_seeds_that_both_arms_have_are_paired() -> None:
    ours, theirs = paired(
        [record("quietstar", seed, 1.0) for seed in (0, 2)], [record("filler", seed, 1.0) for seed in (2, 1)]
    )
    assert [each.seed for each in ours] == [each.seed for each in theirs] == [2]
    ours, theirs = paired([record("quietstar", seed, 1.0) for seed in (0, 2)], [record("base", None, 1.0)])
    assert [each.seed for each in theirs] == [None, None]


def test_a_planted_effect_is_called_help() -> None:
    first, better, worth = said(study_of(dict.fromkeys(CONTROLS, 1.0) | {"quietstar": 0.95}))
    assert first == "quietstar: thoughts help: it is better than every control."
    assert "better than base +0.05" in better
    assert "with its own thoughts replaced: removed +0.1000" in worth


def test_thoughts_never_help_where_filler_does_as_well() -> None:
    levels = dict.fromkeys(CONTROLS, 1.0) | {"filler": 0.95, "quietstar": 0.95}
    first, *others = said(study_of(levels))
    assert first == "quietstar: thoughts have not been shown to help: no difference shows beside filler."
    assert any("no difference shows beside filler" in each for each in others)


def test_a_better_control_is_named() -> None:
    first, *_ = said(study_of(dict.fromkeys(CONTROLS, 1.0) | {"finetune-compute": 0.9, "quietstar": 0.95}))
    assert first == "quietstar: thoughts do not help: finetune-compute is better."


def test_a_null_is_undecided_not_a_proof_of_nothing() -> None:
    first, *_ = said(study_of(dict.fromkeys(CONTROLS, 1.0) | {"quietstar": 1.0}, interventions=0.0))
    assert first == "quietstar: undecided: no difference shows beside any control."


def test_nobody_says_that_thoughts_help_without_the_controls() -> None:
    first, *_ = said(study_of({"base": 1.0, "filler": 1.0, "quietstar": 0.9}))
    assert "no control has thoughts that nothing reinforces or the same compute without thoughts" in first


def test_a_gain_that_stays_when_thoughts_go_is_none_of_thoughts() -> None:
    first, *_ = said(study_of(dict.fromkeys(CONTROLS, 1.0) | {"quietstar": 0.9}, interventions=0.0))
    assert "no difference shows when its thoughts are removed, so that what it thinks may not be why" in first


def test_one_seed_is_said_to_be_one() -> None:
    levels = dict.fromkeys(CONTROLS, 1.0) | {"quietstar": 0.9}
    first, *others = said(study_of(levels, seeds=(1,)))
    assert "had one seed: another may say otherwise" in first
    assert "with one seed, for other texts alone" in others[0]


def test_records_of_other_texts_or_models_do_not_mix() -> None:
    found = study_of({"base": 1.0, "filler": 1.0, "quietstar": 0.9})
    records = [record for of_arm in found.by_arm.values() for record in of_arm]
    records[-1].contents = {"test": "another"}
    with pytest.raises(SettingsError, match="was measured on another text, or began as another model"):
        Comparison(found.recipe, records)
    records[-1].contents, records[-1].nll = {}, records[-1].nll[:-1]
    with pytest.raises(SettingsError, match="was measured on another text"):
        Comparison(found.recipe, records)


def test_hard_tokens_of_a_single_row_have_no_interval() -> None:
    found = study_of({"base": 1.0, "filler": 1.0, "quietstar": 0.9})
    found.masks[HARD_TOKENS] = [mask & (index == 0) for index, mask in enumerate(found.masks[ALL_TOKENS])]
    assert {each.where for each in found.differences()} == {ALL_TOKENS}
