"""The base model seen through a trunk is the base model: states, logits, cache; and it is left as it was."""

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from quietstar.attention import attention_backend
from quietstar.base.trunk import Text, Trunk, check_reach
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid, default_position_ids
from tests.tiny import FAMILIES, texts, tiny_base, tiny_model


def trunk_of(base_lm: PreTrainedModel) -> Trunk:
    return Trunk(base_lm, attention_backend("dense", base_lm))


def text_of(*lengths: int, cache: DynamicCache | None = None) -> Text:
    """Rows padded on the left."""
    inputs = texts(*lengths, left=True)
    return Text(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        position_ids=default_position_ids(inputs["attention_mask"].bool()),
        cache=DynamicCache() if cache is None else cache,
    )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_a_text_is_the_base_models_own_pass(family: str) -> None:
    """States and logits where there is no padding, and all keys in the cache."""
    base_lm, text = tiny_base(family), text_of(9, 4)
    trunk = trunk_of(base_lm)
    base = trunk.read(text)
    real = text.attention_mask.bool()
    given = {"attention_mask": text.attention_mask, "position_ids": text.position_ids}
    own = base_lm(text.input_ids, **given).logits
    states = base_lm.base_model(text.input_ids, **given).last_hidden_state
    torch.testing.assert_close(base.h_base[real], states[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trunk.logits(base.h_base)[real], own[real], rtol=1e-4, atol=1e-3)
    assert base.cache is text.cache
    assert base.cache.get_seq_length() == 9


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_a_text_may_be_read_in_two(family: str) -> None:
    trunk, text = trunk_of(tiny_base(family)), text_of(9, 9)
    whole = trunk.read(text).h_base
    first = Text(
        input_ids=text.input_ids[:, :5],
        attention_mask=text.attention_mask[:, :5],
        position_ids=text.position_ids[:, :5],
        cache=DynamicCache(),
    )
    early = trunk.read(first).h_base
    late = trunk.read(
        Text(
            input_ids=text.input_ids[:, 5:],
            attention_mask=text.attention_mask,
            position_ids=text.position_ids,
            cache=first.cache,
        )
    ).h_base
    torch.testing.assert_close(torch.cat([early, late], dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_first_pass_alone_leaves_its_hidden_states() -> None:
    model = tiny_model(n_ahead=4)
    trunk = model.thinker().trunk
    trunk.keeps_hidden_states = True
    base = trunk.read(text_of(7, 7))
    kept = trunk.hidden_states
    assert torch.equal(kept[-1], base.h_base)
    grid = ThoughtGrid.grow(torch.ones(2, 7), torch.ones(2, 7), n_passes=1, branch_length=1)
    branches = torch.zeros(1, 1, 14, 32)
    trunk.branch_pass(grid, range(1), branches, trunk.branch_cache(base.cache, grid))
    assert trunk.hidden_states is kept


def test_each_thinker_is_for_one_pass() -> None:
    """Look-ups of embeddings share one gradient, so that those of two passes must not meet."""
    model = tiny_model(n_ahead=4)
    first, second = model.thinker(), model.thinker()
    assert first.trunk is not second.trunk
    assert first.trunk.embed is not second.trunk.embed
    assert first.mixing_head is second.mixing_head is model.mixing_head


@pytest.mark.parametrize("training", [True, False])
def test_branches_keep_their_cache_under_gradient_checkpointing(training: bool) -> None:
    """It is off for the length of a branch pass, and on again when that fails."""
    model = tiny_model(n_ahead=4).train(training)
    model.gradient_checkpointing_enable()
    trunk = model.thinker().trunk
    assert trunk.is_checkpointing == trunk.grows_in_parts == training
    with torch.no_grad():
        assert not trunk.grows_in_parts
        base = trunk.read(text_of(7, 7))
    grid = ThoughtGrid.grow(torch.ones(2, 7), torch.ones(2, 7), n_passes=1, branch_length=2)
    cache = trunk.branch_cache(base.cache, grid)
    trunk.branch_pass(grid, range(1), torch.zeros(1, 1, 14, 32), cache)
    assert cache.get_seq_length() == 7 + 14
    assert trunk.is_checkpointing == training
    with pytest.raises(RuntimeError):
        trunk.branch_pass(grid, range(1, 2), torch.zeros(1, 1, 14, 31), cache)
    assert trunk.is_checkpointing == training


def test_learned_positions_bound_a_text_and_its_branches() -> None:
    """Rotations do not."""
    check_reach(tiny_base("gpt2"), 120, 8)
    check_reach(tiny_base("llama"), 1000, 8)
    with pytest.raises(SettingsError, match="reach position 129, but gpt2 has learned 128 positions; give at most 120"):
        check_reach(tiny_base("gpt2"), 121, 8)
