"""Attention in two parts equals one softmax over all keys, and dense masks, in outputs and gradients."""

import logging

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from quietstar import QuietStarForCausalLM, ThoughtGrid
from quietstar.attention import sight as blocks
from quietstar.attention import split
from quietstar.attention.sight import Sight
from quietstar.attention.two_parts import two_part_attention
from quietstar.base import vocabulary
from tests.plain_loop import mismatches, plain_loop
from tests.test_grid import grids, sight_in_one_row, windows
from tests.tiny import loud, make_thoughtful, random_thoughts, seeded, texts, tiny_base, tiny_model


def in_one_part(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """[1, queries, H, d'] by one softmax over all keys and the sinks, in float64."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(groups, dim=1) for x in (keys, values))
    scores = scaling * query.double() @ keys.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    p = scores.softmax(-1)[..., : keys.shape[2]]
    return (p @ values).transpose(1, 2).float()


@given(
    grids(),
    windows,
    st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1)]),
    st.sampled_from([None, 1.5]),
    st.booleans(),
    st.sampled_from([1, 2, 128]),
    st.sampled_from([1, 2, 64]),
    st.sampled_from([1, 40, 2**20]),
    st.data(),
)
@settings(max_examples=150)
def test_two_parts_are_one_softmax(
    made: tuple[ThoughtGrid, Tensor],
    window: int | None,
    heads: tuple[int, int],
    softcap: float | None,
    with_sinks: bool,
    columns: int,
    steps_at_once: int,
    scores: int,
    data: st.DataObject,
) -> None:
    """Any grid, steps, window, grouping, pieces of keys and sizes of blocks; soft caps and sinks."""
    grid, _ = made
    assume(grid.n_columns)
    B, S, J, d = grid.batch_size, grid.n_base, heads[0], 3
    n = grid.n_passes * grid.n_columns
    stop = data.draw(st.integers(1, grid.branch_length))
    steps = range(data.draw(st.integers(0, stop - 1)), stop)
    generator = seeded(data.draw(st.integers(0, 9)))

    def random(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=generator)).requires_grad_()

    query = random(1, J * heads[1], len(steps) * n, d)
    prefix = random(B, J, S, d), random(B, J, S, d + 1)
    own = random(1, J, stop * n, d), random(1, J, stop * n, d + 1)
    sinks = random(J * heads[1]) if with_sinks else None
    inputs = [query, *prefix, *own] + ([sinks] if with_sinks else [])
    cut = data.draw(st.integers(0, stop - 1))
    by_branch = [each[0].unflatten(1, (-1, grid.n_passes, grid.n_columns)).permute(0, 3, 2, 1, 4) for each in own]
    pieces = [
        (by_branch[0][..., part, :], by_branch[1][..., part, :])
        for part in (slice(cut), slice(cut, None))
        if part.stop != 0
    ]
    sight = Sight.over(grid, steps, window, S)
    keys, values = (
        torch.cat([text.transpose(0, 1).flatten(1, 2)[None], branches], dim=2)
        for text, branches in zip(prefix, own, strict=True)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "COLUMNS_AT_ONCE", columns)
        patch.setattr(blocks, "STEPS_AT_ONCE", steps_at_once)
        patch.setitem(blocks.SCORES_AT_ONCE, "cpu", scores)
        ours = two_part_attention(
            query, prefix, pieces, sight, scaling=0.7, softcap=softcap, sinks=sinks
        )  # fmt: skip
        theirs = in_one_part(query, keys, values, sight_in_one_row(grid, steps, window), 0.7, softcap, sinks)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        up = torch.randn(ours.shape, generator=generator)
        gradients = torch.autograd.grad(ours, inputs, up, allow_unused=True)
    for own, expected in zip(gradients, torch.autograd.grad(theirs, inputs, up, allow_unused=True), strict=True):
        if expected is not None and expected.numel():
            torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-6)


@st.composite
def settings_of_a_model(draw: st.DrawFn) -> dict:
    return {
        "family": draw(st.sampled_from(["llama", "mistral-window", "gemma3_text", "qwen2-window", "gpt2"])),
        "n_ahead": draw(st.integers(2, 5)),
        "n_ahead_talk": draw(st.integers(1, 3)),
        "n_passes": draw(st.integers(1, 3)),
        "heads": draw(st.sampled_from([1, 2, 4])),
    }


@given(
    settings_of_a_model(), st.lists(st.integers(2, 9), min_size=1, max_size=3), st.booleans(), st.booleans(), st.data()
)
@settings(max_examples=40)
def test_the_split_backend_equals_dense(
    how: dict, lengths: list[int], left: bool, in_parts: bool, data: st.DataObject
) -> None:
    """Outputs to 1e-4, gradients to 1e-3 of each tensor's maximum."""
    base = {} if how["family"] == "gpt2" else {"num_key_value_heads": how["heads"]}
    names = ("n_ahead", "n_ahead_talk", "n_passes")
    model = tiny_model(how["family"], base=base, policy_weight=1.0, **{name: how[name] for name in names}).train()
    if in_parts:
        model.gradient_checkpointing_enable()
    inputs = texts(*lengths, left=left)
    B, S = inputs["input_ids"].shape
    inputs["thoughts"] = random_thoughts(model, B, S, P=how["n_passes"])
    chosen = st.lists(st.lists(st.booleans(), min_size=S, max_size=S), min_size=B, max_size=B)
    inputs["think_at"] = torch.tensor(data.draw(chosen)) if data.draw(st.booleans()) else None
    found = {}
    for backend in ("dense", "split"):
        model.set_attention_backend(backend)
        output = model(**inputs)
        loss = output.nll + output.policy_loss
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found[backend] = output, gradients
    (dense, theirs), (ours, own) = found["dense"], found["split"]
    for name in ("logits", "base_nll", "talk_nll", "mixing_weight", "reward", "thought_logprob", "nll"):
        torch.testing.assert_close(getattr(ours, name), getattr(dense, name), rtol=1e-4, atol=1e-4)
    for gradient, expected in zip(own, theirs, strict=True):
        if expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-6)


def test_in_bfloat16_it_is_as_close_to_float32_as_dense() -> None:
    inputs = texts(24, 17)
    exact = tiny_model(n_ahead=6, n_ahead_talk=3)
    inputs["thoughts"] = random_thoughts(exact, 2, 24, P=2)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = exact(**inputs).logits[real]
        errors = {}
        for backend in ("dense", "split"):
            half = tiny_model(n_ahead=6, n_ahead_talk=3).bfloat16()
            half.set_attention_backend(backend)
            error = (half(**inputs).logits[real].float() - expected).square().mean().sqrt()
            errors[backend] = float(error)
    assert 0 < errors["split"] < 1.2 * errors["dense"]


@pytest.mark.parametrize("left", [False, True])
def test_attention_sinks(left: bool) -> None:
    """GPT-OSS: a sink for each head, windows in every other layer, experts."""
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=5,
        max_position_embeddings=128, rope_scaling=None, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    base_lm = AutoModelForCausalLM.from_config(config).eval()
    loud(base_lm)
    with torch.no_grad():
        for layer in base_lm.model.layers:
            layer.self_attn.sinks.copy_(3 * torch.randn(4, generator=seeded(1)))
    model = QuietStarForCausalLM.from_base(base_lm, n_ahead=4, n_ahead_talk=2, policy_weight=1.0)
    assert model.attention.name == "split"
    make_thoughtful(model)
    inputs = texts(8, 5, left=left)
    inputs["thoughts"] = random_thoughts(model, 2, 8, P=2)
    found = []
    for backend in ("dense", "split"):
        model.set_attention_backend(backend)
        output = model(**inputs)
        assert mismatches(output, plain_loop(model, **inputs, n_ahead_talk=2), inputs["attention_mask"]) == {}
        found.append(torch.autograd.grad(output.nll, [layer.self_attn.sinks for layer in base_lm.model.layers]))
    for dense, ours in zip(*found, strict=True):
        assert dense.abs().max() > 0
        torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3 * float(dense.abs().max()))


def test_attention_dropout_uses_dense_masks_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    split._warn_of_dense.cache_clear()
    inputs = texts(6, 4)
    model = tiny_model("gpt2", base={"attn_pdrop": 0.5}, n_ahead=4, n_ahead_talk=2).train()
    inputs["thoughts"] = random_thoughts(model, 2, 6, P=1)
    found = []
    for backend in ("dense", "split"):
        model.set_attention_backend(backend)
        torch.manual_seed(0)
        found.append(model(**inputs).talk_nll)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert sum("attention dropout" in record.getMessage() for record in caplog.records) == 1


def test_few_branches_attend_through_one_small_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_model(n_ahead=5), texts(9, 4, left=True)
    del inputs["labels"]
    with torch.no_grad():
        in_two_parts = model(**inputs).logits
        model.attention.few_branches = 9
        monkeypatch.setattr(split, "two_part_attention", None)
        torch.testing.assert_close(model(**inputs).logits, in_two_parts, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- nothing is larger than it must be


class Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(
        self, operation: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("backend", ["dense", "split"])
def test_no_tensor_is_as_large_as_the_grid_squared_or_as_tokens_times_vocabulary(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a training step, forward and backward. Dense masks are larger, so the test would fail with them."""
    B, S, P, L, V = 2, 48, 2, 8, 1500
    model = tiny_model(n_ahead=6, n_ahead_talk=3, n_passes=P, base={"vocab_size": V}).train()
    model.set_attention_backend(backend)
    monkeypatch.setitem(blocks.SCORES_AT_ONCE, "cpu", 2**14)
    monkeypatch.setitem(vocabulary.BYTES_AT_ONCE, "cpu", 4 * V * vocabulary.STATES)
    inputs = texts(S, S)
    with Largest() as largest:
        model(**inputs, loss_only=True).loss.backward()
    tokens = B * P * L * S
    widest = tokens * 48  # one activation of the MLP for every branch token
    assert widest < tokens * (S + P * L * S) / 8
    assert widest < tokens * V / 8
    assert (largest.elements <= 1.5 * widest) == (backend == "split"), largest.elements / widest


def test_every_token_passes_every_projection_once() -> None:
    """In a training step: the text once, whatever n_passes is; start once for all passes; the rest of a branch once."""
    B, S, P, K, M = 2, 10, 3, 3, 2
    model = tiny_model(n_ahead=K + 2, n_ahead_talk=M, n_passes=P).train()
    inputs = texts(S, S)
    tokens = {"q_proj": 0, "down_proj": 0}
    for name, module in model.base_lm.named_modules():
        if name.startswith("model.layers.0.") and (projection := name.split(".")[-1]) in tokens:

            def count(_: object, __: object, output: Tensor, projection: str = projection) -> None:
                tokens[projection] += output.shape[0] * output.shape[1]

            module.register_forward_hook(count)
    model(**inputs, loss_only=True).loss.backward()
    columns = B * (S - 1)  # the last token of a row has no label
    assert set(tokens.values()) == {B * S + columns * (1 + P * (K + 1 + M - 1))}


def test_a_backend_survives_setting_the_attention_function_again() -> None:
    """The base model's own function would ignore a grid, and every branch would see everything."""
    model, inputs = tiny_model(n_ahead=4), texts(7)
    with torch.no_grad():
        before = model(**inputs).logits
        model.base_lm.set_attn_implementation("eager")
        torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-4, atol=1e-4)


def test_the_base_model_alone_computes_what_it_did(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    base_lm, inputs = tiny_base("gemma3_text"), texts(9, 4, left=True)
    del inputs["labels"]
    before = base_lm(**inputs).logits
    model = QuietStarForCausalLM.from_base(base_lm, n_ahead=4)
    assert torch.equal(model.base_lm(**inputs).logits, before)
    assert torch.equal(
        model.base_lm.generate(**inputs, max_new_tokens=4, do_sample=False),
        tiny_base("gemma3_text").generate(**inputs, max_new_tokens=4, do_sample=False),
    )


def test_the_attention_function_has_its_own_name_except_while_branches_attend() -> None:
    """Some modeling files read the name of their attention function: GPT-2 has a path for eager only."""
    model, inputs = tiny_model("gpt2", n_ahead=4), texts(6)
    seen = []
    model.base_lm.transformer.h[0].register_forward_pre_hook(
        lambda layer, given: seen.append((given[0].shape[1], model.base_lm.config._attn_implementation))
    )
    with torch.no_grad():
        model(**inputs)
    assert model.base_lm.config._attn_implementation == "sdpa"
    assert seen[0] == (6, "sdpa")
    assert {name for _, name in seen[1:]} == {"sdpa+thoughts"}
