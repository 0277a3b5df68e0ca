"""Decoding: what is thought while a text is generated is what the grid thinks over the whole of it, for less work."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, StaticCache

from quietstar import QuietStarForCausalLM
from quietstar.attention.fork import ForkedCache, ForkLayer
from quietstar.base.trunk import Trunk
from quietstar.output import CACHE
from tests.tiny import FAMILIES, texts, tiny_model

ASKED = ["llama", "mistral-window", "qwen3", "gemma3_text", "gpt2"]
FREE = {"eos_token_id": None, "pad_token_id": 0, "output_logits": True, "output_thoughts": True}


def prompts(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """Rows padded on the left."""
    inputs = texts(*lengths, left=True, seed=seed)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}


def replayed(model: QuietStarForCausalLM, inputs: dict[str, Tensor], found: Any) -> float:
    """How far the logits of `generate` lie from the grid's with the same thoughts, in tolerances."""
    B, S = inputs["input_ids"].shape
    T = found.sequences.shape[1] - S
    thoughts = torch.zeros(B, 1, S + T, model.config.n_thought_tokens, dtype=torch.long)
    thoughts[:, 0, S - 1 : -1] = found.thoughts.tokens
    think_at = torch.zeros(B, S + T)
    think_at[:, S - 1 : -1] = found.thoughts.thought
    mask = torch.cat([inputs["attention_mask"], torch.ones(B, T, dtype=torch.long)], dim=1)
    with torch.no_grad():
        output = model(found.sequences, mask, thoughts=thoughts, think_at=think_at)
    expected, ours = output.logits[:, S - 1 : -1], torch.stack(found.logits, dim=1)
    weight = output.mixing_weight[:, 0, S - 1 : -1, 0]
    scale = float(expected.abs().max())
    return max(
        float((ours - expected).abs().max()) / (1e-4 * scale + 1e-4),
        float((found.thoughts.mixing_weight - weight).abs().max()) / 1e-3,
    )


@pytest.mark.parametrize("n_ahead", [3, 6])
@pytest.mark.parametrize("how", [{}, {"do_sample": True}, {"num_beams": 2}, {"thought_temperature": 1.0}], ids=str)
@pytest.mark.parametrize("family", ASKED)
def test_thoughts_that_end_early_are_decoded_as_over_a_grid(family: str, how: dict[str, Any], n_ahead: int) -> None:
    """Rows end at different steps; one that has ended is read no further."""
    model, inputs = tiny_model(family, n_ahead=n_ahead, learn_to_end=True), prompts(7, 3, 9)
    torch.manual_seed(0)
    found = model.generate(**inputs, **FREE | {"do_sample": False} | how, max_new_tokens=6)
    lengths = (found.thoughts.tokens >= 0).sum(-1)
    assert n_ahead == 3 or len(lengths.unique()) > 1
    assert ((found.thoughts.tokens >= 0) == (torch.arange(n_ahead - 2) < lengths[..., None])).all()
    if "num_beams" not in how:
        assert replayed(model, inputs, found) < 1


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_inference_think_the_same_thought(family: str) -> None:
    """What `generate` predicted equals what the grid predicts with the same thoughts, in one pass over the text."""
    model, inputs = tiny_model(family, n_ahead=5), prompts(7, 3, 9)
    found = model.generate(**inputs, **FREE, do_sample=False, max_new_tokens=6)
    assert found.thoughts.thought.all()
    assert replayed(model, inputs, found) < 1
    thoughts = torch.zeros(3, 1, found.sequences.shape[1], 3, dtype=torch.long)
    thoughts[:, 0, 8:-1] = found.thoughts.tokens
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 6, dtype=torch.long)], dim=1)
    with torch.no_grad():  # and left to itself the grid thinks them too
        assert torch.equal(model(found.sequences, mask).thoughts[:, 0, 8:-1], found.thoughts.tokens)


@settings(max_examples=60)
@given(data=st.data())
def test_generated_equals_replayed(data: st.DataObject) -> None:
    """Families, lengths, thought lengths, caches, policies and temperatures: always the grid's own logits."""
    draw = data.draw
    model = tiny_model(draw(st.sampled_from(ASKED)), n_ahead=draw(st.integers(2, 6)))
    inputs = prompts(*draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)), seed=draw(st.integers(0, 99)))
    how: dict[str, Any] = {
        "think": draw(
            st.sampled_from(
                [
                    "always",
                    "never",
                    "every:2",
                    "probability:0.5",
                    "entropy:2",
                    "margin:0.3",
                    "mixing_head:0",
                    "budget:2",
                ]
            )
        ),
        "thought_temperature": draw(st.sampled_from([0.0, 1.0])),
        "thought_top_p": draw(st.sampled_from([1.0, 0.7])),
        "max_new_tokens": draw(st.integers(1, 7)),
        **draw(st.sampled_from([{}, {"use_cache": False}, {"cache_implementation": "static"}])),
    }
    torch.manual_seed(draw(st.integers(0, 99)))
    found = model.generate(**inputs, **FREE, **how, do_sample=draw(st.booleans()), top_k=0)
    assert replayed(model, inputs, found) < 1, how


class OneLate(ForkLayer):
    """A branch that has forgotten the last token of its text."""

    def _append(self, keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        known = super()._append(keys, values, first)
        at = self.n_read - self.n_kept - keys.shape[2]
        return tuple(of.clone().index_fill_(2, torch.tensor(of.shape[2] - keys.shape[2] - 1), at) for of in known)


def wrong_positions(patch: pytest.MonkeyPatch) -> None:
    """Position ids of branches one too high."""
    right = Trunk.base_pass

    def wrong(self: Trunk, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        return right(self, embeds, mask, position_ids + (embeds.shape[1] == 1), cache)

    patch.setattr(Trunk, "base_pass", wrong)


def wrong_mask(patch: pytest.MonkeyPatch) -> None:
    """Branches see padding."""
    right = Trunk.base_pass

    def wrong(self: Trunk, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        return right(self, embeds, mask if embeds.shape[1] > 2 else torch.ones_like(mask), position_ids, cache)

    patch.setattr(Trunk, "base_pass", wrong)


def wrong_keys(patch: pytest.MonkeyPatch) -> None:
    """A branch does not see the last token of its text."""
    patch.setattr("quietstar.attention.fork.ForkLayer", OneLate)


def wrong_window(patch: pytest.MonkeyPatch) -> None:
    """A window that is one token wider for branches."""
    patch.setattr(ForkLayer, "_in_sight", lambda self, n: n if self.window is None else min(n, self.window))


@pytest.mark.parametrize("error", [wrong_positions, wrong_mask, wrong_keys, wrong_window])
def test_a_deliberate_error_is_noticed(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes generate and grid disagree."""
    model, inputs = tiny_model("mistral-window", n_ahead=5), prompts(7, 3, 9)
    how = {**FREE, "do_sample": False, "max_new_tokens": 4}
    assert replayed(model, inputs, model.generate(**inputs, **how)) < 1
    with monkeypatch.context() as patch:
        error(patch)
        try:
            found = model.generate(**inputs, **how)
        except (RuntimeError, ValueError):
            return
    assert replayed(model, inputs, found) > 10


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of each pass of the trunk."""
    right, passes = Trunk._states, []

    def counting(self: Trunk, embeds: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        passes.append((embeds.shape[0], embeds.shape[1]))
        return right(self, embeds, *args, **kwargs)

    with patch.context() as inside:
        inside.setattr(Trunk, "_states", counting)
        yield passes


@pytest.mark.parametrize("n_ahead", [2, 3, 8])
def test_n_ahead_less_one_passes_for_each_token(n_ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start is read with the new token, end with the last thought token; the prompt is thought at its end only."""
    model, inputs = tiny_model("llama", n_ahead=n_ahead), prompts(6, 4)
    with counted(monkeypatch) as passes:
        model.generate(**inputs, do_sample=False, max_new_tokens=3, eos_token_id=None, pad_token_id=0)
    K = n_ahead - 2
    branch = [1] * (K - 1) + [2] if K else []
    opening = 1 if K else 2
    expected = [6 + opening, *branch, *([1 + opening, *branch] * 2)]
    assert passes == [(2, n) for n in expected]
    assert len(passes) == 3 * (n_ahead - 1)


@pytest.mark.parametrize(("think", "passes_of"), [("never", [(3, 1)]), ("entropy:1000", [(3, 1)])])
def test_rows_that_do_not_think_cost_the_base_step(
    think: str, passes_of: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass but the base model's own; where some rows think, only they are in further passes."""
    model, inputs = tiny_model("llama", n_ahead=4), prompts(6, 4, 5)
    how = {"do_sample": False, "max_new_tokens": 2, "eos_token_id": None, "pad_token_id": 0}
    with counted(monkeypatch) as passes:
        rows = model.generate(**inputs, think=think, **how)
    assert passes[1:] == passes_of
    assert torch.equal(rows, model.base_lm.generate(**inputs, **how))
    with counted(monkeypatch) as passes:
        model.generate(**inputs, think=lambda moment: moment.rows == 1, **how)
    assert passes[4:] == [(3, 1), (1, 1), (1, 1), (1, 2)]


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text"])
@pytest.mark.parametrize("kind", ["dynamic", "by config", "static"])
def test_the_cache_holds_base_keys_and_values_only(family: str, kind: str) -> None:
    """As long as the text, and equal to what the base model alone leaves there."""
    model, inputs = tiny_model(family, n_ahead=4), prompts(6, 9)
    config = model.config.get_text_config()
    own = {
        "dynamic": lambda: DynamicCache(),
        "by config": lambda: DynamicCache(config=config),
        "static": lambda: StaticCache(config=config, max_cache_len=20),
    }[kind]
    ours, theirs = own(), own()
    with torch.no_grad():
        for n in (9, 10):
            some = slice(0 if n == 9 else 9, n)
            ids = torch.nn.functional.pad(inputs["input_ids"], (0, 1), value=7)[:, some]
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)[:, :n]
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, some]
            model(ids, mask, logits_to_keep=1, **{CACHE: ours})
            model.base_lm(ids, attention_mask=mask, position_ids=positions, **{CACHE: theirs})
            assert int(ours.get_seq_length()) == n
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert a.keys.shape == b.keys.shape
        torch.testing.assert_close(a.keys[1], b.keys[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.values[1], b.values[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ASKED)
def test_a_static_cache_generates_what_a_dynamic_one_does(family: str) -> None:
    """Static and sliding static layers, before and after their window is full."""
    model, inputs = tiny_model(family, n_ahead=5), prompts(7, 3)
    how = {"do_sample": False, "max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**inputs, **how)
    assert torch.equal(model.generate(**inputs, **how, cache_implementation="static"), expected)
    assert torch.equal(model.generate(**inputs, **how, use_cache=False), expected)


@pytest.mark.parametrize("window", [12, 16, 64])
@pytest.mark.parametrize("family", ["mistral-window", "gemma3_text", "phi3-window"])
def test_a_static_cache_may_be_shorter_than_the_window(family: str, window: int) -> None:
    """A window that has not moved hides nothing, also where the cache is nearly full."""
    model, inputs = tiny_model(family, n_ahead=6, base={"sliding_window": window}), prompts(7, 3)
    how = {**FREE, "do_sample": False, "max_new_tokens": 9}
    assert replayed(model, inputs, model.generate(**inputs, **how, cache_implementation="static")) < 1


@pytest.mark.parametrize("think", ["always", "budget:3"])
def test_a_prompt_may_be_read_in_chunks(think: str) -> None:
    """It is thought about at its end only, and nothing is counted before."""
    model, inputs = tiny_model("llama", n_ahead=4), prompts(9, 5)
    how = {**FREE, "do_sample": False, "max_new_tokens": 6, "think": think}
    whole, chunks = model.generate(**inputs, **how), model.generate(**inputs, **how, prefill_chunk_size=2)
    assert torch.equal(whole.sequences, chunks.sequences)
    assert torch.equal(whole.thoughts.thought, chunks.thoughts.thought)
    assert torch.equal(whole.thoughts.tokens, chunks.thoughts.tokens)


def test_a_cache_is_handed_in_and_continued() -> None:
    """Two calls are one; a cache of ours holds nothing of how it was made."""
    model, inputs = tiny_model("gemma3_text", n_ahead=4), prompts(7, 7)
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    whole = model.generate(**inputs, **how, max_new_tokens=6)
    half = model.generate(**inputs, **how, max_new_tokens=3, return_dict_in_generate=True)
    cache = half[CACHE]
    assert cache.get_seq_length() == 9
    assert not hasattr(cache, "journal")
    assert torch.equal(model.generate(half.sequences, **how, max_new_tokens=3, **{CACHE: cache}), whole)


def test_a_fork_leaves_nothing_twice() -> None:
    """While a thought is written, a dynamic cache's own keys lie in the branch's memory."""
    text = DynamicCache()
    fork = ForkedCache(text, branch_length=3, n_early=1)
    keys = torch.randn(2, 1, 5, 4)
    fork.update(keys, keys, 0)
    assert text.layers[0].keys.data_ptr() == fork.layers[0].memory[0].data_ptr()
    assert torch.equal(text.layers[0].keys, keys[:, :, :4])


def test_nothing_of_a_branch_is_left_behind() -> None:
    """Keys of a step are freed with it, not when garbage is collected some time later."""
    model, inputs = tiny_model("llama", n_ahead=4), prompts(6)
    gc.collect()
    gc.disable()
    try:
        for think in ("always", "never", "entropy:0"):
            model.generate(**inputs, think=think, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        left = [found for found in gc.get_objects() if isinstance(found, ForkLayer) and (found.known or found.memory)]
    finally:
        gc.enable()
    assert not left
