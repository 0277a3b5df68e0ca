"""Log-probabilities are those of the whole vocabulary at once, and so are the gradients that are made with them."""

import pytest
import torch
from torch import Tensor

from quietstar.base import vocabulary
from quietstar.base.logprob import EagerGradients, Scored, masked_logprob, squared_gradient, token_logprob
from quietstar.base.vocabulary import LMHead, scale_and_cap
from tests.tiny import seeded


def head(V: int = 11, D: int = 8, **parts: object) -> LMHead:
    return LMHead(torch.randn(V, D, generator=seeded(1)), **parts)


HEADS = {
    "plain": {},
    "bias": {"bias": torch.randn(11, generator=seeded(3))},
    "factor": {"factor": 0.6},
    "divisor": {"divisor": 3.0},
    "softcap": {"softcap": 2.5},
    "everything": {"bias": torch.ones(11), "factor": 0.6, "divisor": 3.0, "softcap": 0.7},
}


def direct_logprob(lm_head: LMHead, hidden: Tensor, tokens: Tensor, temperature: float, ids: Tensor | None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, lm_head.weight, lm_head.bias)
    logits = scale_and_cap(logits, lm_head.factor, lm_head.divisor, lm_head.softcap) / temperature
    if ids is not None:
        logits = logits.index_fill(-1, ids, -torch.inf)
    return logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]


def parameters(lm_head: LMHead) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in (lm_head.weight, lm_head.bias) if tensor is not None]


@pytest.mark.parametrize("parts", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("suppressed", [None, [1, 4]])
@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_logprobs_of_a_few_rows_at_once_are_logprobs(
    n: int, suppressed: list[int] | None, temperature: float, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, and gradients of states and of the head, four rows at a time."""
    monkeypatch.setattr(vocabulary, "STATES", 4)
    monkeypatch.setitem(vocabulary.BYTES_AT_ONCE, "cpu", 4 * 4 * 11)
    lm_head, hidden = head(**HEADS[parts]), torch.randn(n, 8, generator=seeded(), requires_grad=True)
    inputs = [hidden, *parameters(lm_head)]
    tokens = torch.randint(5, 11, (n,), generator=seeded())
    ids = None if suppressed is None else torch.tensor(suppressed)
    up = torch.randn(n, generator=seeded(4))

    ours = token_logprob(lm_head, hidden, tokens, temperature, ids)
    direct = direct_logprob(lm_head, hidden, tokens, temperature, ids)
    torch.testing.assert_close(ours, direct)
    theirs = torch.autograd.grad((direct * up).sum(), inputs)
    for _ in range(2):  # a graph that is kept gives the same gradients again
        found = torch.autograd.grad((ours * up).sum(), inputs, retain_graph=True)
        for own, expected in zip(found, theirs, strict=True):
            torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("parts", HEADS)
@pytest.mark.parametrize("suppressed", [None, [1, 4]])
@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_eager_gradients_are_those_of_the_weighted_sum(
    n: int, suppressed: list[int] | None, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two sets of states at two temperatures, one of them behind another operation, whatever the loss's factor."""
    monkeypatch.setattr(vocabulary, "STATES", 4)
    monkeypatch.setitem(vocabulary.BYTES_AT_ONCE, "cpu", 4 * 4 * 11)
    lm_head, first = head(**HEADS[parts]), torch.randn(n, 8, generator=seeded(), requires_grad=True)
    second = torch.randn(3, 8, generator=seeded(2), requires_grad=True)
    inputs = [first, second, *parameters(lm_head)]
    tokens = torch.randint(5, 11, (n + 3,), generator=seeded())
    weights = torch.randn(n + 3, generator=seeded(4))
    ids = None if suppressed is None else torch.tensor(suppressed)

    eager, where = EagerGradients(lm_head), torch.ones(n + 3, dtype=torch.bool)
    terms = (
        Scored(first, tokens[:n], where[:n], weights[:n]),
        Scored(second.sin(), tokens[n:], where[n:], weights[n:], temperature=3.0, suppressed=ids),
    )
    ours = torch.cat([eager.add(term)[0] for term in terms])
    direct = torch.cat(
        [
            direct_logprob(lm_head, first, tokens[:n], 1.0, None),
            direct_logprob(lm_head, second.sin(), tokens[n:], 3.0, ids),
        ]
    )
    torch.testing.assert_close(ours, direct)
    assert not ours.requires_grad
    loss = eager.attach(-(weights * ours).sum())
    torch.testing.assert_close(loss, -(weights * direct).sum())
    theirs = torch.autograd.grad(-0.25 * (weights * direct).sum(), inputs)
    for own, expected in zip(torch.autograd.grad(0.25 * loss, inputs, retain_graph=True), theirs, strict=True):
        torch.testing.assert_close(own, expected)
    with pytest.raises(RuntimeError, match="leave loss_only out"):
        loss.backward()


@pytest.mark.parametrize(("V", "D"), [(61, 32), (1002, 64), (5000, 256)])
def test_a_state_has_the_same_logprob_to_the_bit_wherever_it_stands(V: int, D: int) -> None:
    """Rewards are differences of them: a thought that changes nothing must be rewarded with nothing."""
    lm_head, hidden = head(V, D), torch.randn(200, D, generator=seeded())
    tokens = torch.randint(V, (200,), generator=seeded())
    together = token_logprob(lm_head, hidden, tokens)
    for some in (slice(1), slice(5, 8), slice(100, 163), slice(40, 199)):
        assert torch.equal(token_logprob(lm_head, hidden[some], tokens[some]), together[some])


def test_a_frozen_head_gets_no_gradient_and_passes_one_on() -> None:
    lm_head, hidden = head(), torch.randn(3, 8, requires_grad=True)
    token_logprob(lm_head, hidden, torch.tensor([1, 2, 3])).sum().backward()
    alone, hidden.grad = hidden.grad, None
    eager = EagerGradients(lm_head)
    where = torch.ones(3, dtype=torch.bool)
    logprob, _ = eager.add(Scored(hidden, torch.tensor([1, 2, 3]), where, -torch.ones(3)))
    eager.attach(-logprob.sum()).backward()
    assert lm_head.weight.grad is None
    assert eager.d_weight is None
    assert (hidden.grad != 0).any()
    torch.testing.assert_close(hidden.grad, alone)


def test_logprobs_under_a_mask_are_0_elsewhere() -> None:
    hidden, tokens = torch.randn(2, 3, 8), torch.randint(11, (2, 3))
    where = torch.tensor([[True, False, True], [False, False, True]])
    scored = Scored(hidden, tokens, where, torch.ones(2, 3))
    for values in (masked_logprob(head(), scored), EagerGradients(head()).add(scored)[0]):
        assert torch.equal(values[where], token_logprob(head(), hidden[where], tokens[where]))
        assert (values[~where] == 0).all()


@pytest.mark.parametrize("parts", HEADS)
def test_lengths_of_gradients_are_those_of_autograd(parts: str) -> None:
    """At each state that counts, with weights, temperature and suppressed tokens; apart, or with the values."""
    lm_head, hidden = head(**HEADS[parts]), torch.randn(2, 3, 8, generator=seeded(), requires_grad=True)
    tokens, weights = torch.randint(5, 11, (2, 3), generator=seeded()), torch.randn(2, 3, generator=seeded(1))
    where = torch.tensor([[True, False, True], [False, False, True]])
    scored = Scored(hidden, tokens, where, weights, temperature=3.0, suppressed=torch.tensor([1, 4]))
    (masked_logprob(lm_head, scored) * weights).sum().backward()
    expected = hidden.grad.square().sum(-1)
    assert (expected[where] > 0).all()
    torch.testing.assert_close(squared_gradient(lm_head, scored), expected)
    torch.testing.assert_close(EagerGradients(lm_head).add(scored)[1], expected)


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_in_bfloat16_only_the_products_are_rounded(how: str) -> None:
    """Softmax and log in float32: as close as bfloat16 logits are, not as bfloat16 log-probabilities are."""
    lm_head, hidden = head(200, 64), torch.randn(300, 64, generator=seeded())
    tokens = torch.randint(200, (300,), generator=seeded())
    exact = token_logprob(lm_head, hidden, tokens)
    if how == "weights":
        lm_head = LMHead(lm_head.weight.bfloat16())
        hidden = hidden.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        ours = token_logprob(lm_head, hidden, tokens)
        logits = hidden.bfloat16() @ lm_head.weight.bfloat16().T
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, logits.float().log_softmax(-1)[torch.arange(300), tokens])
    assert (ours - exact).abs().max() > 1e-4, "nothing was rounded"


def test_float16_gradients_survive_a_loss_scale() -> None:
    """Made before the scale is known they would vanish or overflow: they are made afterwards."""
    hidden = torch.randn(20, 8, generator=seeded()).half().requires_grad_()
    lm_head = LMHead(torch.randn(3000, 8, generator=seeded(1)).half().requires_grad_())
    weights = torch.full((20,), 2.0**-14)
    assert not EagerGradients.possible(lm_head)
    assert EagerGradients.possible(head())
    with torch.autocast("cpu", torch.float16):
        assert not EagerGradients.possible(head())
    values = token_logprob(lm_head, hidden, torch.arange(20))
    found = torch.autograd.grad(2.0**16 * (values * weights).sum(), (hidden, lm_head.weight))
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, lm_head.weight)]
    logprob = (exact[0] @ exact[1].T).log_softmax(-1)[torch.arange(20), torch.arange(20)]
    for own, expected in zip(found, torch.autograd.grad(4 * logprob.sum(), exact), strict=True):
        torch.testing.assert_close(own.float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_gradients_made_afterwards_are_the_same_in_a_compiled_function() -> None:
    tokens, hidden = torch.arange(5), torch.randn(5, 8, generator=seeded()).requires_grad_()

    def loss(states: Tensor, lm_head: LMHead) -> Tensor:
        return token_logprob(lm_head, 2 * states, tokens).sum()

    (found,) = torch.autograd.grad(torch.compile(loss, backend="eager")(hidden, head()), hidden)
    (expected,) = torch.autograd.grad(loss(hidden, head()), hidden)
    torch.testing.assert_close(found, expected)
