"""Compiled layers of the base model: batches of many shapes make no storm of compilations."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.tiny import random_thoughts, texts, tiny_model


@pytest.mark.slow
def test_lengths_and_numbers_of_columns_do_not_compile_layers_anew() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2, policy_weight=1.0).train()
    batches = [texts(*lengths) for lengths in ((9, 4), (12, 3, 7), (5, 5), (17,), (6, 11, 2, 8), (14, 13))]
    for batch in batches:
        batch["thoughts"] = random_thoughts(model, *batch["input_ids"].shape, P=2)
    expected = [model(**batch, loss_only=True).loss for batch in batches]
    torch._dynamo.reset()
    counter = CompileCounter()
    modules = [module for module in model.base_lm.modules() if type(module).__name__.endswith(("MLP", "RMSNorm"))]
    for module in modules:
        module.compile(dynamic=True, backend=counter)
    made = []
    for batch, loss in zip(batches, expected, strict=True):
        found = model(**batch, loss_only=True).loss
        found.backward()
        torch.testing.assert_close(found, loss)
        made.append(counter.frame_count)
    torch._dynamo.reset()
    assert made[0] > 0
    assert made[-1] == made[1], f"compiled after each batch: {made}"
