"""Losses against numbers made by hand, and against a plain computation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quietstar import learn
from quietstar.learn import IGNORED, Labels
from tests.learn.test_labels import everywhere, look_ahead
from tests.plain_learn import plain_learn


@st.composite
def examples(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int, int]:
    """labels and is_column [B, S], P, M, K: labels missing anywhere, rows without any, S shorter than M."""
    B, S = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    entries = st.lists(st.sampled_from([IGNORED, 0, 1, 2]), min_size=S, max_size=S)
    chosen = st.lists(st.booleans(), min_size=S, max_size=S)
    labels = torch.tensor(draw(st.lists(entries, min_size=B, max_size=B)))
    is_column = torch.tensor(draw(st.lists(chosen, min_size=B, max_size=B)))
    return labels, is_column, draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 2))


def values_like(labels: Labels, P: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """base_nll, talk_nll and thought_logprob; junk where there is no label must not matter."""
    B, S, M = labels.ahead.shape
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(B, S, generator=generator),
        torch.rand(B, P, S, M, generator=generator),
        -torch.rand(B, P, S, K, generator=generator),
    )


def nll_of(base_nll: Tensor, talk_nll: Tensor, labels: Labels, counts: learn.Counts, base_loss_weight: float) -> Tensor:
    P = talk_nll.shape[1]
    return learn.nll_loss(base_nll, talk_nll, learn.nll_weights(labels, counts, P, base_loss_weight))


def policy_of(
    advantage: Tensor,
    logprob: Tensor,
    labels: Labels,
    counts: learn.Counts,
    rollout: learn.Rollout = learn.NO_ROLLOUT,
) -> Tensor:
    _, P, _, K = logprob.shape
    return learn.policy_loss(logprob, advantage, learn.thought_shares(labels, counts, P, K), rollout)


@pytest.mark.parametrize("kind", learn.ADVANTAGES)
@given(example=examples())
def test_losses_are_means_over_real_labels(kind: str, example: tuple[Tensor, Tensor, int, int, int]) -> None:
    row, is_column, P, M, K = example
    labels = look_ahead(row, is_column, M)
    base_nll, talk_nll, logprob = values_like(labels, P, K)
    values = (each.tolist() for each in (row, is_column, base_nll, talk_nll, logprob))
    plain = plain_learn(*values, advantage=kind, base_loss_weight=0.3)
    reward = learn.reward(base_nll, talk_nll, labels)
    advantage = learn.advantage(reward, kind)
    for (b, p, i), expected in plain.reward.items():
        assert float(reward[b, p, i]) == pytest.approx(expected, abs=1e-5)
        assert float(advantage[b, p, i]) == pytest.approx(plain.advantage[b, p, i], rel=1e-3, abs=1e-4)
    nll = nll_of(base_nll, talk_nll, labels, labels.count(), base_loss_weight=0.3)
    assert float(nll) == pytest.approx(plain.nll, abs=1e-5)
    policy = policy_of(advantage, logprob, labels, labels.count())
    assert float(policy) == pytest.approx(plain.policy_loss, rel=1e-3, abs=1e-4)


def other(values: Tensor, seed: int) -> Tensor:
    """Log-probabilities of the same tokens by another model, some of them far away."""
    generator = torch.Generator().manual_seed(seed)
    return values - 2 * torch.rand(values.shape, generator=generator) + 1


@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
@pytest.mark.parametrize(("first_epoch", "clip_ratio"), [(True, None), (False, None), (False, 0.2)])
@given(example=examples())
def test_what_a_reference_and_a_first_epoch_change(
    first_epoch: bool, clip_ratio: float | None, kl_weight: float, example: tuple[Tensor, Tensor, int, int, int]
) -> None:
    row, is_column, P, M, K = example
    labels = look_ahead(row, is_column, M)
    base_nll, talk_nll, logprob = values_like(labels, P, K)
    before: dict[str, Tensor] = {"reference_nll": 2 * base_nll.roll(1, dims=1)}
    if kl_weight:
        before["reference_logprob"] = other(logprob, seed=1)
    if not first_epoch:
        before["logprob"] = other(logprob, seed=2)
        before["advantage"] = torch.randn(talk_nll.shape[:3], generator=torch.Generator().manual_seed(3))
    rollout = learn.Rollout(clip_ratio=clip_ratio, kl_weight=kl_weight, **before)
    as_plain = {f"first_{n}" if n in ("logprob", "advantage") else n: value.tolist() for n, value in before.items()}
    values = (each.tolist() for each in (row, is_column, base_nll, talk_nll, logprob))
    plain = plain_learn(
        *values,
        advantage="leave_one_out" if P > 1 else "centered",
        base_loss_weight=0.5,
        clip_ratio=clip_ratio,
        kl_weight=kl_weight,
        **as_plain,
    )
    reward = learn.reward(before["reference_nll"], talk_nll, labels)
    advantage = before.get("advantage", learn.advantage(reward, "leave_one_out"))
    policy = policy_of(advantage, logprob, labels, labels.count(), rollout)
    assert float(policy) == pytest.approx(plain.policy_loss, rel=1e-3, abs=1e-4)
    for (b, p, i), expected in plain.reward.items():
        assert float(reward[b, p, i]) == pytest.approx(expected, abs=1e-5)


@given(examples())
def test_the_weight_of_a_token_is_the_slope_of_the_loss(example: tuple[Tensor, Tensor, int, int, int]) -> None:
    row, is_column, P, M, K = example
    labels = look_ahead(row, is_column, M)
    _, talk_nll, logprob = values_like(labels, P, K)
    advantage = torch.randn(talk_nll.shape[:3], generator=torch.Generator().manual_seed(3))
    shares = learn.thought_shares(labels, labels.count(), P, K)
    rollout = learn.Rollout(
        logprob=other(logprob, 2), clip_ratio=0.2, kl_weight=0.7, reference_logprob=other(logprob, 1)
    )
    weights = learn.token_weights(logprob, advantage, shares, rollout)
    direction = torch.rand(logprob.shape, generator=torch.Generator().manual_seed(4)).double()
    step = 1e-5
    ahead, behind = (
        learn.policy_loss(logprob.double() + way * direction, advantage, shares, rollout) for way in (step, -step)
    )
    assert float((ahead - behind) / (2 * step)) == pytest.approx(-float((weights * direction).sum()), abs=1e-4)
    linear = learn.token_weights(logprob, advantage, shares)
    torch.testing.assert_close(linear, (advantage * shares)[..., None].expand_as(linear))


def test_a_clipped_token_teaches_nothing() -> None:
    """Likelier than before by more than the ratio and good, or less likely and bad; the other two ways teach."""
    row = torch.tensor([[1, 1]])
    labels = look_ahead(row, everywhere(row), 1)
    shares = learn.thought_shares(labels, labels.count(), 2, 2)
    logprob = torch.tensor([[[[-1.0, -2.0]] * 2] * 2])
    moved = torch.tensor([0.5, -0.5])  # the first token likelier, the second less likely
    rollout = learn.Rollout(logprob=logprob - moved, clip_ratio=0.2)
    advantage = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    weights = learn.token_weights(logprob, advantage, shares, rollout)[0, :, 0]
    assert (weights != 0).tolist() == [[False, True], [True, False]]


@given(examples(), st.data())
def test_losses_of_parts_add_up_to_the_whole(
    example: tuple[Tensor, Tensor, int, int, int], data: st.DataObject
) -> None:
    row, is_column, P, M, K = example
    whole = look_ahead(row, is_column, M)
    base_nll, talk_nll, logprob = values_like(whole, P, K)
    advantage = learn.advantage(learn.reward(base_nll, talk_nll, whole))
    cut = data.draw(st.integers(0, len(row)))
    parts = [slice(0, cut), slice(cut, len(row))]
    labels = [look_ahead(row[part], is_column[part], M) for part in parts]
    counts = labels[0].count() + labels[1].count()
    for name in ("base", "talk", "complete"):
        assert torch.equal(getattr(counts, name), getattr(whole.count(), name))
    nll = sum(nll_of(base_nll[part], talk_nll[part], own, counts, 0.5) for part, own in zip(parts, labels, strict=True))
    policy = sum(
        policy_of(advantage[part], logprob[part], own, counts) for part, own in zip(parts, labels, strict=True)
    )
    torch.testing.assert_close(nll, nll_of(base_nll, talk_nll, whole, whole.count(), 0.5))
    torch.testing.assert_close(policy, policy_of(advantage, logprob, whole, whole.count()))


def test_losses_by_hand() -> None:
    row = torch.tensor([[1, 1, 1]])
    labels = look_ahead(row, everywhere(row), 2)
    base_nll = torch.tensor([[1.0, 3.0, 99.0]])
    talk_nll = torch.tensor([[[[1.0, 7.0], [2.0, 99.0], [99.0, 99.0]], [[3.0, 9.0], [4.0, 99.0], [99.0, 99.0]]]])
    nll = nll_of(base_nll, talk_nll, labels, labels.count(), base_loss_weight=0.5)
    assert float(nll) == 0.5 * 2 + 0.5 / 2 * (2.5 + 8)
    advantage = torch.tensor([[[2.0, 99.0, 99.0], [0.0, 99.0, 99.0]]])  # only column 0 has both its labels
    logprob = torch.tensor([[[[-1.0, -3.0]] * 3, [[-5.0, -7.0]] * 3]])
    policy = policy_of(advantage, logprob, labels, labels.count())
    assert float(policy) == -(2 * -1 + 2 * -3) / 4


def test_nothing_to_learn_is_a_loss_of_zero() -> None:
    row = torch.full((2, 3), IGNORED)
    labels = look_ahead(row, everywhere(row), 2)
    base_nll, talk_nll, logprob = values_like(labels, P=2, K=2)
    assert nll_of(base_nll, talk_nll, labels, labels.count(), 0.5) == 0
    reward = learn.reward(base_nll, talk_nll, labels)
    assert policy_of(learn.advantage(reward), logprob, labels, labels.count()) == 0
    assert policy_of(learn.advantage(reward), logprob[..., :0], labels, labels.count()) == 0
