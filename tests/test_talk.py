"""What a branch is made of, and predictions mixed after it, for every shape of thought and talk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from quietstar import QuietStarForCausalLM, ThoughtGrid, talk
from quietstar.attention import BranchCache, DenseAttention
from quietstar.base.trunk import Trunk
from quietstar.talk import (
    Branches,
    Talk,
    branch_embeds,
    finish_branches,
    mix_branches,
    mixed_states,
    n_parts,
    split_branches,
)
from quietstar.think import Thinker, Thoughts
from tests.plain_loop import mismatches, plain_loop
from tests.tiny import random_thoughts, texts, tiny_model


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 5), min_size=1, max_size=2))
def test_every_shape_of_thought_equals_the_plain_loop(
    n_ahead: int, n_ahead_talk: int, n_passes: int, lengths: list[int]
) -> None:
    model = tiny_model(n_ahead=n_ahead, n_ahead_talk=n_ahead_talk)
    inputs = texts(*lengths, max(2, *lengths))  # one label at least
    inputs["thoughts"] = random_thoughts(model, len(lengths) + 1, inputs["input_ids"].shape[1], n_passes)
    with torch.no_grad():
        plain = plain_loop(model, **inputs, n_ahead_talk=n_ahead_talk)
        assert mismatches(model(**inputs), plain, inputs["attention_mask"]) == {}


@st.composite
def thoughts_that_end(draw: st.DrawFn, P: int, S: int, K: int) -> Tensor:
    """[2, P, S, K]: any length, from none to K tokens."""
    lengths = torch.tensor(draw(st.lists(st.integers(0, K), min_size=2 * P * S, max_size=2 * P * S)))
    tokens = torch.randint(3, 61, (2 * P * S, K), generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    return tokens.masked_fill(torch.arange(K) >= lengths[:, None], -1).view(2, P, S, K)


@settings(max_examples=40)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 0.3]), st.booleans(), st.data())
def test_thoughts_of_unequal_length_equal_the_plain_loop(
    n_ahead: int, n_ahead_talk: int, n_passes: int, price: float, in_parts: bool, data: st.DataObject
) -> None:
    how = dict(learn_to_end=True, length_price=price)
    model = tiny_model(n_ahead=n_ahead, n_ahead_talk=n_ahead_talk, policy_weight=1.0, **how).train(in_parts)
    if in_parts:
        model.gradient_checkpointing_enable()
    inputs = texts(5, 3)
    inputs["thoughts"] = data.draw(thoughts_that_end(n_passes, 5, n_ahead - 2))
    plain = plain_loop(model, **inputs, n_ahead_talk=n_ahead_talk)
    output = model(**inputs)
    assert mismatches(output, plain, inputs["attention_mask"]) == {}
    expected, found = (
        torch.autograd.grad(each.nll + each.policy_loss, list(model.parameters()), allow_unused=True)
        for each in (plain, output)
    )
    if model.training:
        eager = model(**inputs, loss_only=True)
        torch.testing.assert_close(eager.loss, output.loss)
        found = torch.autograd.grad(eager.loss, list(model.parameters()), allow_unused=True)
    for (name, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
        size = 0.0 if theirs is None else float(theirs.abs().max())
        zero = torch.zeros(())
        difference = float(((zero if ours is None else ours) - (zero if theirs is None else theirs)).abs().max())
        assert difference <= 1e-3 * size + 1e-4, name


def grown(n_ahead_talk: int = 3) -> tuple:
    """A model's parts over a small grid: columns 1 and 3 of the first row, 0 of the second."""
    model = tiny_model(n_ahead=4, n_ahead_talk=n_ahead_talk)
    inputs = texts(5, 5)
    think_at = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    grid = ThoughtGrid.grow(think_at, inputs["attention_mask"], n_passes=2, branch_length=3 + n_ahead_talk)
    thoughts = torch.randint(3, 61, (2, 3, 2), generator=torch.Generator().manual_seed(0))
    return model, model.thinker(), grid, inputs["input_ids"], thoughts


def test_a_branch_is_start_thought_end_and_true_tokens() -> None:
    model, thinker, grid, input_ids, thoughts = grown()
    embeds = branch_embeds(thinker, grid, thoughts, thinker.trunk.embed(input_ids))
    the_rest = branch_embeds(thinker, grid, thoughts, thinker.trunk.embed(input_ids), n_grown=2)
    assert torch.equal(the_rest, embeds[2:])
    assert embeds.shape == (6, 2, 3, 32)
    word = model.get_input_embeddings()
    for n, (b, column) in enumerate([(0, 1), (0, 3), (1, 0)]):
        for p in range(2):
            branch = embeds[:, p, n]
            assert torch.equal(branch[0], model.thought_embeddings.start)
            assert torch.equal(branch[1:3], word(thoughts[p, n]))
            assert torch.equal(branch[3], model.thought_embeddings.end)
            truth = input_ids[b, column + 1 : column + 3]
            assert torch.equal(branch[4 : 4 + len(truth)], word(truth))


def test_states_that_sample_and_states_that_predict() -> None:
    """Start and all thought tokens but the last draw; the last draws nothing; end and true tokens predict."""
    hidden = torch.arange(6.0).reshape(6, 1, 1, 1)
    branches = split_branches(hidden, Thoughts(torch.zeros(1, 1, 2)))
    assert branches.h_sampled.flatten().tolist() == [0, 1]
    assert branches.h_thought.flatten().tolist() == [3, 4, 5]


def test_branches_go_on_from_what_was_grown() -> None:
    model, _, grid, input_ids, thoughts = grown()
    trunk = Trunk(model.base_lm, DenseAttention(model.base_lm))
    thinker = Thinker.of(trunk, model.thought_embeddings, model.mixing_head, model.config, model.config.n_ahead)
    with torch.no_grad():
        cache = DynamicCache()
        words = trunk.embed(input_ids)
        trunk.base_pass(words, grid.base_mask.long(), grid.base_position_ids, cache)
        embeds = branch_embeds(thinker, grid, thoughts, words)
        at_once = finish_branches(trunk, grid, embeds, BranchCache(cache, grid, branches_in_rows=True))
        over = BranchCache(cache, grid, branches_in_rows=True)
        first = trunk.branch_pass(grid, range(2), embeds[:2], over)
        in_two = finish_branches(trunk, grid, embeds[2:], over, grown=first)
    torch.testing.assert_close(in_two, at_once, rtol=1e-4, atol=1e-4)


def mixed(model: QuietStarForCausalLM, grid: ThoughtGrid, h_base: Tensor, h_thought: Tensor) -> Talk:
    branches = Branches(h_sampled=h_thought[:, :, :0], h_thought=h_thought)
    return mix_branches(grid, model.mixing_head, h_base, branches)


def test_each_prediction_is_mixed_with_the_base_states_own() -> None:
    """w_k mixes h_k with h_base[i+k]: column i's k-th prediction and the base's of the same token."""
    model, _, grid, _, _ = grown()
    generator = torch.Generator().manual_seed(0)
    h_base = torch.randn(2, 5, 32, generator=generator)
    h_thought = torch.randn(2, 3, 3, 32, generator=generator)
    said = mixed(model, grid, h_base, h_thought)
    assert said.weight.shape == (2, 3, 3)
    for p, n, k in ((0, 0, 0), (1, 0, 2), (1, 1, 1), (0, 2, 2)):
        without, after = h_base[grid.rows[n], int(grid.columns[n]) + k], h_thought[p, n, k]
        weight = model.mixing_head(without, after)
        torch.testing.assert_close(said.weight[p, n, k], weight[0])
        torch.testing.assert_close(said.mixed[p, n, k], (1 - weight) * without + weight * after)


@pytest.mark.parametrize("n_kept", [5, 2])
def test_mixed_states_stand_where_a_thought_was_written(n_kept: int) -> None:
    """The first pass's, after the end token; everywhere else the base state. With a cache, the last tokens only."""
    model, _, _, _, _ = grown()
    think_at = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]])
    grid = ThoughtGrid.grow(think_at, torch.ones(2, 5), n_passes=2, branch_length=6)
    generator = torch.Generator().manual_seed(0)
    h_base = torch.randn(2, n_kept, 32, generator=generator)
    said = mixed(model, grid, h_base, torch.randn(2, 3, 3, 32, generator=generator))
    states = mixed_states(grid, h_base, said)
    first = 5 - n_kept
    expected = h_base.clone()
    expected[0, 3 - first] = said.mixed[0, 0, 0]
    expected[1, 3 - first] = said.mixed[0, 1, 0]
    expected[1, 4 - first] = said.mixed[0, 2, 0]
    assert torch.equal(states, expected)


@pytest.mark.parametrize(
    ("branches", "parts"),
    [
        ((100, 2, 11, 6), (12, 1)),  # twice as many as layers
        ((5, 2, 11, 6), (5, 1)),  # a column each, short ones with all their passes
        ((4, 4, 514, 6), (4, 4)),
        ((1, 16, 514, 30), (1, 16)),
        ((1, 16, 64, 30), (1, 2)),  # not less than 512 tokens
        ((0, 2, 11, 6), (1, 1)),
    ],
)
def test_branches_are_recomputed_in_as_many_parts(branches: tuple[int, ...], parts: tuple[int, int]) -> None:
    assert n_parts(*branches, is_sharded=False) == parts
    assert n_parts(*branches, is_sharded=True) == (talk.SHARDED_PARTS, 1)


@pytest.mark.parametrize("n_passes", [1, 2, 3, 5])
def test_parts_of_passes_are_the_whole(n_passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(n_ahead=5, n_ahead_talk=2, policy_weight=1.0).train()
    inputs = texts(6, 4)
    inputs["think_at"] = torch.tensor([[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]])
    inputs["thoughts"] = random_thoughts(model, 2, 6, n_passes)
    found = []
    for least in (None, 1, 10**6):
        if least is not None:
            monkeypatch.setattr(talk, "TOKENS_AT_LEAST", least)
            model.gradient_checkpointing_enable()
        loss = model(**inputs, loss_only=True).loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert n_parts(2, n_passes, 6, 2, False)[1] == 1
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()) + 1e-6)
