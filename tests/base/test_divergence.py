"""Divergences in blocks equal those of whole logits, gradients included; coarse targets are never above whole ones."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quietstar.base import vocabulary
from quietstar.base.divergence import KINDS, Likeliest, Spoken, divergence
from quietstar.base.vocabulary import LMHead

D = 6


def head_of(V: int, seed: int, *, bias: bool = False, softcap: float | None = None, factor: float = 1.0) -> LMHead:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    return LMHead(
        weight,
        torch.randn(V, generator=generator).requires_grad_() if bias else None,
        factor=factor,
        softcap=softcap,
    )


def states(n: int, seed: int, *more: int) -> Tensor:
    return 2 * torch.randn(*more, n, D, generator=torch.Generator().manual_seed(seed))


def logprob(head: LMHead, hidden: Tensor) -> Tensor:
    """[..., V], from whole logits."""
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.factor / head.divisor
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(-1)


def whole(kind: str, logp: Tensor, logq: Tensor) -> Tensor:
    """[n], of log-probabilities [n, V]."""
    if kind == "kl":
        return (logp.exp() * (logp - logq)).sum(-1)
    return (logq.exp() * (logq - logp)).sum(-1)


def coarse(target: Likeliest, logq: Tensor) -> tuple[Tensor, Tensor]:
    """[n, k + 1] each: of the teacher and of a prediction [n, V], all other tokens being one."""
    others = torch.ones_like(logq, dtype=torch.bool).scatter(1, target.tokens, False)
    rest = logq.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([target.logprob, target.rest[:, None]], 1), torch.cat([logq.gather(1, target.tokens), rest], 1)


def gradients(value: Tensor, weights: Tensor, *of: Any) -> list[Tensor]:
    return list(torch.autograd.grad((value * weights).sum(), [each for each in of if each is not None]))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks of 64 states."""
    monkeypatch.setattr(vocabulary, "BYTES_AT_ONCE", {"cpu": 4})


@pytest.mark.parametrize("kind", KINDS)
@given(
    n=st.integers(0, 150),
    V=st.integers(2, 40),
    P=st.integers(1, 3),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 3.0]),
    factor=st.sampled_from([1.0, 0.5]),
)
def test_blocks_are_whole_logits(
    kind: str, n: int, V: int, P: int, bias: bool, softcap: float | None, factor: float
) -> None:
    student, teacher = head_of(V, 0, bias=bias, softcap=softcap, factor=factor), head_of(V, 1, softcap=softcap)
    hidden, taught = states(n, 2).requires_grad_(), states(n, 3, P)
    found = divergence(student, hidden, Spoken(teacher, taught), kind)
    logp = logprob(teacher, taught).detach().logsumexp(0) - math.log(P)
    expected = whole(kind, logp, logprob(student, hidden))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert bool((found >= -1e-5).all())
    weights = torch.linspace(0.5, 2, max(n, 1))[:n]
    of = (hidden, student.weight, student.bias)
    for ours, theirs in zip(gradients(found, weights, *of), gradients(expected, weights, *of), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 100), V=st.integers(3, 40), k=st.integers(1, 45), softcap=st.sampled_from([None, 3.0]))
def test_the_likeliest_tokens_are_coarser(kind: str, n: int, V: int, k: int, softcap: float | None) -> None:
    student, teacher = head_of(V, 0, softcap=softcap), head_of(V, 1)
    hidden, taught = states(n, 2).requires_grad_(), states(n, 3, 2)
    target = Likeliest.of(Spoken(teacher, taught), k)
    assert target.tokens.shape == (n, min(k, V - 1))
    found = divergence(student, hidden, target, kind)
    logq = logprob(student, hidden)
    expected = whole(kind, *coarse(target, logq))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    logp = logprob(teacher, taught).detach().logsumexp(0) - math.log(2)
    torch.testing.assert_close(target.logprob, logp.topk(min(k, V - 1)).values, atol=1e-5, rtol=1e-5)
    true = whole(kind, logp, logq)
    assert bool((found <= true + 1e-4).all())
    if k >= V - 1:
        torch.testing.assert_close(found, true, atol=1e-4, rtol=1e-4)
    weights = torch.linspace(0.5, 2, n)
    for ours, theirs in zip(
        gradients(found, weights, hidden, student.weight),
        gradients(expected, weights, hidden, student.weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_does_not_diverge_from_itself(kind: str) -> None:
    head, hidden = head_of(30, 0), states(9, 1).requires_grad_()
    for target in (Spoken(head, hidden.detach()[None]), Likeliest.of(Spoken(head, hidden.detach()[None]), 4)):
        found = divergence(head, hidden, target, kind)
        torch.testing.assert_close(found, torch.zeros(9), atol=1e-6, rtol=0)
        (gradient,) = torch.autograd.grad(found.sum(), hidden)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_its_sums_in_float32(kind: str) -> None:
    student, teacher = head_of(50, 0), head_of(50, 1)
    hidden, taught = states(20, 2), states(20, 3, 1)
    exact = divergence(student, hidden, Spoken(teacher, taught), kind)
    half = LMHead(student.weight.detach().bfloat16().requires_grad_())
    states_in_half = hidden.bfloat16().requires_grad_()
    found = divergence(half, states_in_half, Spoken(teacher, taught), kind)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0.1)
    (gradient,) = torch.autograd.grad(found.sum(), states_in_half)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [60.0, 300.0])
def test_predictions_that_are_certain_have_finite_gradients(kind: str, size: float) -> None:
    """Also where the other tokens together have a probability below float32's smallest."""
    head, teacher = LMHead(torch.eye(4).requires_grad_()), LMHead(torch.eye(4))
    hidden = torch.tensor([[size, size, -size, -size], [size, -size, -size, -size]], requires_grad=True)
    spoken = Spoken(teacher, torch.tensor([[[2.0, 2, 0, 0], [2.0, 2, 0, 0]]]))
    for target in (spoken, Likeliest.of(spoken, 2)):
        value = divergence(head, hidden, target, kind)
        (gradient,) = torch.autograd.grad(value.sum(), hidden)
        assert bool(value.isfinite().all())
        assert bool(gradient.isfinite().all())
        if kind == "kl":
            expected = hidden.detach().softmax(-1) - spoken.logprob(slice(0, 2)).T.exp()
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
