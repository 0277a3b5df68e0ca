"""Rope frequencies that depend on the length of the text: base pass, branches and decoding use those of the text."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from quietstar import QuietStarForCausalLM
from quietstar.base.rope import steady_length
from quietstar.errors import DataError, SettingsError, UnsupportedModelError
from quietstar.inspection.reading import Reading
from tests.long import mostly_long
from tests.plain_loop import greedy_thought, mismatches, plain_loop
from tests.serving.running import a_job, alone, driven
from tests.test_families import MODES, differing, gradients, running
from tests.tiny import FAMILIES, random_thoughts, texts, tiny_base, tiny_model
from tests.tiny_tokenizer import byte_tokenizer

LIMIT = 24
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 5.0, 7.0],
    "original_max_position_embeddings": LIMIT,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": LIMIT}),
    "llama, longrope": ("llama", {"rope_parameters": _LONG}),
    "llama, dynamic": ("llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": LIMIT}),
    "gemma3, dynamic in some layers": (
        "gemma3_text",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": _DYNAMIC,
            },
            "max_position_embeddings": LIMIT,
        },
    ),
}
PLAIN: dict[str, Any] = {
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
    "max_new_tokens": 20,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def base_with(rope: str) -> PreTrainedModel:
    family, settings = ROPES[rope]
    return tiny_base(family, **copy.deepcopy(settings))


def model_with(rope: str, **settings: Any) -> QuietStarForCausalLM:
    family, base = ROPES[rope]
    return tiny_model(family, base=copy.deepcopy(base), n_ahead=5, **settings)


def reading(model: QuietStarForCausalLM, n_tokens: int) -> QuietStarForCausalLM:
    """Return a copy whose base model uses the frequencies of texts of a given length at every length."""
    model = copy.deepcopy(model)
    (rotary,) = (module for module in model.base_lm.modules() if hasattr(module, "rope_type"))
    layers = [{}]
    if isinstance(rotary.rope_type, dict):
        layers = [{"layer_type": layer} for layer in rotary.rope_type]
    for layer in layers:
        rotary(torch.zeros(()), torch.tensor([[n_tokens - 1]]), **layer)
    rotary.rope_type = "default" if layers == [{}] else dict.fromkeys(rotary.rope_type, "default")
    return model


@pytest.mark.parametrize(
    ("rope", "n_tokens", "mode"),
    mostly_long(
        product(ROPES, [12, LIMIT - 2, LIMIT, LIMIT + 1, LIMIT + 9], MODES),
        lambda case: case[0] == "phi3" or case[2] == "in parts",
    ),
)
def test_branches_keep_the_frequencies_of_their_text(rope: str, n_tokens: int, mode: str) -> None:
    """Also where they reach past the length at which frequencies change: they equal the plain loop, with gradients."""
    model = model_with(rope, n_ahead_talk=3, n_passes=2, policy_weight=1.0)
    inputs = texts(n_tokens)
    inputs["thoughts"] = random_thoughts(model, 1, n_tokens, P=2)
    fixed = reading(model, n_tokens)
    plain = plain_loop(fixed, **inputs, n_ahead_talk=3)
    with running(model, mode):
        output = model(**inputs)
        assert mismatches(output, plain, inputs["attention_mask"]) == {}
        if mode != "without gradient":
            assert differing(gradients(model, output), gradients(fixed, plain)) == {}


@pytest.mark.parametrize("rope", ROPES)
def test_frequencies_make_a_difference(rope: str) -> None:
    """What is compared here would be the same with the wrong ones if they changed nothing."""
    model = model_with(rope)
    text = texts(LIMIT + 9)["input_ids"]
    with torch.no_grad():
        right, short = (reading(model, n)(text).logits for n in (LIMIT + 9, LIMIT))
        assert (right - short).abs().max() > 0.1
        torch.testing.assert_close(model(text).logits, right, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rope", ROPES)
def test_a_text_is_read_alike_whatever_was_read_before(rope: str) -> None:
    """Transformers keeps the dynamic frequencies of a longer text."""
    model, text = model_with(rope), texts(LIMIT + 9)["input_ids"]
    with torch.no_grad():
        first = model(text).logits
        for n in (LIMIT + 40, 6):
            model(texts(n)["input_ids"])
            assert torch.equal(model(text).logits, first)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_a_fresh_model_generates_as_its_base_on_both_sides_of_the_change(how: dict[str, Any]) -> None:
    """Phi-3 reads the text again where its frequencies change, or one token with older versions of transformers."""
    base_lm = base_with("phi3")
    inputs = texts(16, 13, left=True)
    del inputs["labels"]
    uncached = {"use_cache": False, "num_beams": how.get("num_beams", 1)}
    own = base_lm.generate(**inputs, **PLAIN, **uncached)
    ours = QuietStarForCausalLM.from_base(base_lm, n_ahead=5).generate(**inputs, **PLAIN, **how)
    assert torch.equal(ours.sequences, own.sequences)
    for a, b in zip(ours.logits, own.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("think", ["always", "every:2", "mixing_head:0"])
def test_cached_generation_equals_the_plain_loop_on_both_sides_of_the_change(think: str) -> None:
    model, inputs = model_with("phi3"), texts(16)
    found = model.generate(inputs["input_ids"], **PLAIN, think=think, output_thoughts=True)
    for t in range(PLAIN["max_new_tokens"]):
        n = 16 + t
        fixed, token = reading(model, n), found.thoughts[0, t]
        with torch.no_grad():
            logits = fixed(found.sequences[:, :n], think="always" if token.thought else "never").logits[0, -1]
        torch.testing.assert_close(found.logits[t][0], logits, rtol=0, atol=1e-4 * float(logits.abs().max()) + 1e-4)
        if token.thought:
            assert token.tokens == greedy_thought(fixed, found.sequences[0, :n])


@pytest.mark.parametrize("rope", [rope for rope in ROPES if rope != "phi3"])
def test_a_cache_with_other_frequencies_is_refused_where_they_change(rope: str) -> None:
    """In one line; up to there, and without a cache, a fresh model generates as its base does."""
    base_lm = base_with(rope)
    model, prompt = QuietStarForCausalLM.from_base(base_lm, n_ahead=5), texts(16)["input_ids"]
    for how in ({"max_new_tokens": LIMIT - 16 + 1}, {"use_cache": False}):
        own = base_lm.generate(prompt, **{**PLAIN, **how})
        assert torch.equal(model.generate(prompt, **{**PLAIN, **how}).sequences, own.sequences)
    with pytest.raises(SettingsError, match=f"past the {LIMIT} at which the rope frequencies") as raised:
        model.generate(prompt, **PLAIN)
    assert "\n" not in str(raised.value)


def test_a_cache_of_a_long_text_goes_on() -> None:
    """LongRoPE has the same frequencies for all texts past the change."""
    model, text = model_with("llama, longrope"), texts(LIMIT + 9)["input_ids"]
    with torch.no_grad():
        cached = model(text[:, : LIMIT + 3], use_cache=True)
        going_on = model(text[:, LIMIT + 3 :], past_key_values=cached.get("cache", cached.get("past_key_values")))
        torch.testing.assert_close(going_on.logits, model(text).logits[:, LIMIT + 3 :], rtol=0, atol=1e-3)


def test_unsupported_length_dependent_frequencies_are_refused() -> None:
    """At load. PhiMoE also scales by the length of the text."""
    rope = {**_LONG, "short_mscale": 1.1, "long_mscale": 1.4}
    config = AutoConfig.for_model("phimoe", **{**FAMILIES["mixtral"], "rope_parameters": rope})
    with pytest.raises(UnsupportedModelError, match="depend on the length of the text"):
        QuietStarForCausalLM.from_base(AutoModelForCausalLM.from_config(config), n_ahead=4)


@pytest.mark.parametrize("rope", [None, {"rope_type": "default", "rope_theta": 10_000.0}])
def test_other_models_have_no_such_limit(rope: dict | None) -> None:
    assert steady_length(tiny_base("llama", rope_parameters=rope).config) is None
    assert steady_length(tiny_base("gpt2").config) is None
    assert steady_length(base_with("phi3").config) == LIMIT


def test_a_text_that_is_read_in_parts_has_the_frequencies_of_the_whole() -> None:
    model, ids = model_with("phi3"), texts(LIMIT + 9)["input_ids"]
    read = Reading(model, ids[0], at_once=7)
    while not read.is_read:
        read.read_on(7)
    with torch.no_grad():
        found = model(ids)
    torch.testing.assert_close(read.h_base, Reading(model, ids[0]).h_base, rtol=0, atol=1e-4)
    at = torch.arange(len(ids[0]))
    assert torch.equal(read.think(at), found.thoughts[0, 0])
    mixed = read.logits(read.after(at, read.think(at)).mixed[:, 0])
    torch.testing.assert_close(mixed, found.logits[0], rtol=0, atol=1e-3)


def test_the_server_ends_texts_where_frequencies_change() -> None:
    """Up to there each is written as if alone, whoever else is served."""
    model = tiny_model("phi3", base={**copy.deepcopy(ROPES["phi3"][1]), "vocab_size": 259}, n_ahead=4)
    engine = driven(model)
    assert engine.context == LIMIT
    jobs = [a_job(list(range(5, 5 + n)), max_tokens=engine.room(n, engine.n_ahead)) for n in (3, 12, LIMIT - 4)]
    events = [engine.ask(job)[1] for job in jobs]
    engine.finish()
    for job, written in zip(jobs, events, strict=True):
        assert [each.token for each in written] == alone(model, job)[0]


def test_a_trace_of_a_text_that_was_written_across_the_change_is_refused() -> None:
    """It would show predictions that were never made."""
    tokenizer = byte_tokenizer()
    model = tiny_model("phi3", base={**copy.deepcopy(ROPES["phi3"][1]), "vocab_size": 259}, n_ahead=4)
    assert model.inspect("x" * 10, tokenizer, generate=LIMIT - 10, interventions=())
    assert model.inspect("x" * (LIMIT + 1), tokenizer, generate=3, interventions=())
    with pytest.raises(DataError, match=f"pass the {LIMIT} at which"):
        model.inspect("x" * 10, tokenizer, generate=LIMIT - 9)
