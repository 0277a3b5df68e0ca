"""Groups of parameters with a learning rate of their own."""

import pytest
import torch
from torch import nn

from quietstar.training.optimizer import added_parameters, give_own_rate
from tests.tiny import tiny_model


def test_moved_parameters_keep_all_but_their_rate() -> None:
    first, second, third, missing = (nn.Parameter(torch.ones(2)) for _ in range(4))
    groups = [{"params": [first, second], "weight_decay": 0.1}, {"params": [third], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    give_own_rate(optimizer, [second, third, missing], 1e-2)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {id(first): (1e-4, 0.1), id(second): (1e-2, 0.1), id(third): (1e-2, 0.0)}
    for parameter in (first, second, third):
        parameter.grad = torch.ones(2)
    optimizer.step()
    assert float(1 - first[0]) == pytest.approx(1e-4, rel=0.2)
    assert float(1 - second[0]) == pytest.approx(1e-2, rel=0.2)


def test_what_is_new_in_a_model_is_its_head_and_embeddings() -> None:
    model = tiny_model(n_ahead=4)
    new = {id(parameter) for parameter in added_parameters(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in new}
    assert names == {name for name, _ in model.named_parameters() if not name.startswith("base_lm.")}
