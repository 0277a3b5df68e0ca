"""All look-ups in a table of embeddings share one gradient, and it is the right one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quietstar.base.lookup import LookUps
from tests.tiny import seeded, tiny_model


def table(**settings: object) -> nn.Embedding:
    made = nn.Embedding(7, 3, **settings)
    nn.init.normal_(made.weight, generator=seeded())
    return made


TOKENS = [torch.tensor([[1, 2], [2, 0]]), torch.tensor([2]), torch.tensor([[6, 1, 1]])]


def loss(look_up: Callable[[Tensor], Tensor], extra: Tensor | None = None) -> Tensor:
    """The second look-up depends on the first, and the first is used twice."""
    first = look_up(TOKENS[0]).sin()
    second = look_up(TOKENS[1]) * first.sum()
    third = look_up(TOKENS[2]).cos() * second.sum()
    return third.sum() + first.square().sum() + (0 if extra is None else extra.square().sum())


@pytest.mark.parametrize("settings", [{}, {"padding_idx": 1}], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_the_gradient_is_that_of_ordinary_look_ups(settings: dict, tied: bool) -> None:
    """A table that is used as another parameter too included; twice over a graph that is kept."""
    ours, theirs = table(**settings), table(**settings)
    loss(theirs, theirs.weight if tied else None).backward()
    made = loss(LookUps(ours), ours.weight if tied else None)
    for n in (1, 2):
        made.backward(retain_graph=True)
        torch.testing.assert_close(ours.weight.grad, n * theirs.weight.grad)


def test_one_gradient_as_large_as_the_table_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    right = torch.ops.aten.embedding_dense_backward
    monkeypatch.setattr(torch.ops.aten, "embedding_dense_backward", lambda *given: made.append(1) or right(*given))
    loss(LookUps(table())).backward()
    assert len(made) == 1


def test_a_module_that_does_more_is_called_as_it_is() -> None:
    """Hooks, another forward, a subclass, a frozen table."""

    class Doubled(nn.Embedding):
        def forward(self, tokens: Tensor) -> Tensor:
            return 2 * super().forward(tokens)

    hooked = table()
    hooked.register_forward_hook(lambda *given: 2 * given[-1])
    patched = table()
    patched.forward = lambda tokens: 2 * nn.functional.embedding(tokens, patched.weight)
    doubled = Doubled(7, 3)
    doubled.load_state_dict(table().state_dict())
    for module in (hooked, patched, doubled):
        found = LookUps(module)(TOKENS[0])
        torch.testing.assert_close(found, 2 * table()(TOKENS[0]))
        found.sum().backward()
        assert module.weight.grad.sum() == 2 * 4 * 3
    frozen = table().requires_grad_(False)
    assert not LookUps(frozen)(TOKENS[0]).requires_grad


@pytest.mark.parametrize("trains", [True, False])
def test_gradient_checkpointing_keeps_the_one_gradient(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hook asks for the gradient of what was looked up, in a table that does not train as well."""
    made, right = [], torch.ops.aten.embedding_dense_backward
    monkeypatch.setattr(torch.ops.aten, "embedding_dense_backward", lambda *given: made.append(1) or right(*given))
    model = tiny_model(n_ahead=4).base_lm
    model.enable_input_require_grads()
    table = model.get_input_embeddings().requires_grad_(trains)
    assert table._forward_hooks
    loss(LookUps(table)).backward()
    assert len(made) == trains


def test_without_gradient_nothing_is_kept() -> None:
    look_ups = LookUps(table())
    with torch.no_grad():
        found = look_ups(TOKENS[0])
    assert not found.requires_grad
    assert look_ups.table is None
