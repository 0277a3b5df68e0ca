"""Backends attend over a grid like dense masks, and a branch cache does not change the base pass."""

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from quietstar import QuietStarForCausalLM, ThoughtGrid
from quietstar.attention import BranchCache, DenseAttention, attention_backend
from quietstar.attention.dense import additive
from quietstar.base.trunk import Trunk
from quietstar.errors import SettingsError, UnsupportedModelError
from tests.tiny import FAMILIES, WINDOWED, random_thoughts, texts, tiny_base, tiny_model

KINDS = ["llama", "mistral-window", "qwen2-window", "gemma3_text", "gpt2", "gpt_neox", "gemma2"]
"""full attention, a window everywhere, windows in some layers, norms of queries and keys, learned positions,
rotated halves, and (eager only) soft caps"""


def grid_over(inputs: dict[str, Tensor], n_passes: int = 2, branch_length: int = 6) -> ThoughtGrid:
    mask = inputs["attention_mask"]
    return ThoughtGrid.grow(mask, mask, n_passes=n_passes, branch_length=branch_length)


@pytest.mark.parametrize("family", KINDS)
def test_two_parts_attend_as_dense_masks_do(family: str) -> None:
    """Outputs and gradients, sampling and given thoughts, padded on the left."""
    model = tiny_model(family, n_ahead=5, n_ahead_talk=3)
    inputs = texts(10, 3, left=True)
    thoughts = random_thoughts(model, 2, 10, P=2)
    real = inputs["attention_mask"].bool()
    found = {}
    for name in ("dense", "split"):
        model.set_attention_backend(name)
        given = model(**inputs, thoughts=thoughts)
        with torch.no_grad():
            own = model(**inputs)
        gradient = torch.autograd.grad(given.nll, model.thought_embeddings.start_embedding)[0]
        found[name] = (given.logits[real].detach(), own.logits[real], own.thoughts, gradient)
    for dense, other in zip(found["dense"], found["split"], strict=True):
        torch.testing.assert_close(other, dense, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("family", "implementation"), [*product(KINDS[:-1], ["eager", "sdpa"]), ("gemma2", "eager")])
def test_branches_grown_in_any_bites_are_the_same(family: str, implementation: str) -> None:
    """Step by step, in two parts, and at once."""
    base_lm = tiny_base(family)
    base_lm.set_attn_implementation(implementation)
    trunk = Trunk(base_lm, DenseAttention(base_lm))
    inputs = texts(9, 4, left=True)
    grid = grid_over(inputs)
    embeds = trunk.embed(inputs["input_ids"])
    words = torch.randint(61, (6, 2, 13), generator=torch.Generator().manual_seed(1))
    branches = trunk.embed(words)
    with torch.no_grad():
        cache = DynamicCache()
        trunk.base_pass(embeds, inputs["attention_mask"], grid.base_position_ids, cache)
        results = []
        for bites in ([6], [1, 5], [1, 1, 1, 1, 1, 1], [3, 3]):
            grown, first, parts = BranchCache(cache, grid, branches_in_rows=True), 0, []
            for n in bites:
                steps = range(first, first + n)
                parts.append(trunk.branch_pass(grid, steps, branches[first : first + n], grown))
                first += n
            results.append(torch.cat(parts))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-3)


def base_pass(family: str, columns: slice, config: bool) -> tuple[Trunk, ThoughtGrid, DynamicCache]:
    """Nine tokens, keys and values kept as `generate` keeps them (config) or all of them."""
    base_lm = tiny_base(family)
    trunk = Trunk(base_lm, DenseAttention(base_lm))
    inputs = texts(9)
    think_at = torch.zeros(1, 9)
    think_at[:, columns] = 1
    grid = ThoughtGrid.grow(think_at, inputs["attention_mask"], n_passes=2, branch_length=2)
    cache = DynamicCache(config=base_lm.config) if config else DynamicCache()
    with torch.no_grad():
        embeds = trunk.embed(inputs["input_ids"])
        trunk.base_pass(embeds, inputs["attention_mask"], grid.base_position_ids, cache)
    return trunk, grid, cache


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2"])
def test_a_branch_cache_leaves_the_base_pass_alone(family: str, config: bool) -> None:
    trunk, grid, cache = base_pass(family, slice(-1, None), config)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    grown = BranchCache(cache, grid, branches_in_rows=True)
    with torch.no_grad():
        trunk.branch_pass(grid, range(1), torch.ones(1, 2, 1, 32), grown)
    assert cache.get_seq_length() == 9
    for layer, own, (keys, values) in zip(cache.layers, grown.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert own.get_seq_length() == keys.shape[-2] + 2


@pytest.mark.parametrize("family", WINDOWED)
def test_layers_that_forgot_get_masks_without_what_they_forgot(family: str) -> None:
    """A sliding layer keeps fewer base tokens than the text has: its mask is as wide as its keys, and the same
    branch comes out as over all of them."""
    found = []
    for config in (False, True):
        trunk, grid, cache = base_pass(family, slice(-1, None), config)
        grown = BranchCache(cache, grid, branches_in_rows=True)
        assert (min(grown.n_base_kept) < 9) == config
        masks = trunk.attention.pass_kwargs(grid, range(1), grown, torch.float32)["attention_mask"]
        kinds = getattr(trunk.base_lm.config, "layer_types", None)
        for layer, n_kept in enumerate(grown.n_base_kept):
            mask = masks[kinds[layer]] if isinstance(masks, dict) else masks
            assert mask.shape == (1, 1, 2, n_kept + 2)
        with torch.no_grad():
            found.append(trunk.branch_pass(grid, range(2), torch.ones(2, 2, 1, 32), grown))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", WINDOWED)
def test_earlier_columns_over_keys_that_are_gone_are_refused(family: str) -> None:
    _, grid, cache = base_pass(family, slice(-2, None), config=True)
    with pytest.raises(SettingsError, match="sliding-window cache has dropped"):
        BranchCache(cache, grid, branches_in_rows=True)


def test_additive_masks_hide_and_show() -> None:
    seen = torch.tensor([[[True, False], [True, True]]])
    for dtype in (torch.float32, torch.bfloat16):
        mask = additive(seen, dtype)
        assert mask.dtype == dtype
        assert mask.shape == (1, 1, 2, 2)
        assert torch.equal(mask == 0, seen[:, None])
        assert mask.min() == torch.finfo(dtype).min


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_come_as_the_family_takes_them(family: str) -> None:
    base_lm = tiny_base(family)
    config = base_lm.config
    grid = grid_over(texts(4), n_passes=1, branch_length=2)
    cache = DynamicCache()
    trunk = Trunk(base_lm, DenseAttention(base_lm))
    trunk.base_pass(trunk.embed(torch.ones(1, 4, dtype=torch.long)), grid.base_mask, grid.base_position_ids, cache)
    mask = trunk.attention.pass_kwargs(grid, range(2), BranchCache(cache, grid, branches_in_rows=True), torch.float32)[
        "attention_mask"
    ]
    kinds = getattr(config, "layer_types", None)
    masks = mask if kinds else {"full_attention": mask}
    assert set(masks) == set(kinds or ["full_attention"])
    assert all(mask.shape == (1, 1, 8, 12) for mask in masks.values())


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(SettingsError, match="'warp' is unknown; choose from"):
        attention_backend("warp", tiny_base())
    with pytest.raises(SettingsError, match="warp"):
        tiny_model().set_attention_backend("warp")


def test_layers_that_no_mask_describes_are_refused() -> None:
    base_lm = tiny_base("llama")
    base_lm.config.layer_types = ["full_attention", "chunked_attention"]
    for backend in ("dense", "split"):
        with pytest.raises(UnsupportedModelError, match="chunked_attention"):
            attention_backend(backend, base_lm)


# ---------------------------------------------------------------------- gradient checkpointing of the base pass


def text_passes(model: QuietStarForCausalLM, inputs: dict[str, Tensor]) -> int:
    """Return how often the text passes a layer in a training step."""
    passes = []
    layer = model.base_lm.model.layers[0].self_attn.q_proj
    S = inputs["input_ids"].shape[1]
    handle = layer.register_forward_hook(lambda *given: passes.append(given[-1].shape[:2]))
    model(**inputs, loss_only=True).loss.backward()
    handle.remove()
    return passes.count((len(inputs["input_ids"]), S))


@pytest.mark.parametrize(("backend", "reentrant"), [("split", False), ("split", True), ("dense", False)])
def test_under_checkpointing_the_text_is_computed_again(backend: str, reentrant: bool) -> None:
    """Its keys and values are kept, its activations are not. Where that cannot be, all are kept, and the gradients
    are the same."""
    inputs, gradients = texts(10, 6), []
    inputs["thoughts"] = random_thoughts(tiny_model(n_ahead=4), 2, 10, P=2)
    for checkpointing in (False, True):
        model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2, policy_weight=1.0).train()
        model.set_attention_backend(backend)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        n_passes = text_passes(model, inputs)
        assert n_passes == (2 if checkpointing and backend == "split" and not reentrant else 1)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept, rtol=1e-3, atol=1e-3 * float(kept.abs().max()))


def test_under_checkpointing_a_text_that_is_read_on_sees_what_was_read_before() -> None:
    """A cache that already has tokens is kept under gradient checkpointing."""
    tokens, found = texts(8)["input_ids"], []
    for checkpointing in (False, True):
        model = tiny_model(n_ahead=4).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with torch.no_grad():
            cache = model(tokens[:, :5], thought_temperature=0.0).cache
        found.append(model(tokens[:, 5:], cache=cache, thought_temperature=0.0).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
