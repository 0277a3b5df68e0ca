"""A model that llama.cpp would compute otherwise is refused, in one line."""

import logging

import pytest

from quietstar.errors import UnsupportedModelError
from quietstar.interop.gguf.families import FAMILIES, family_of, fields_of
from tests.interop.gguf.conftest import GEMMA3, LLAMA3, YARN, plain_model

ROPE = {"rope_theta": 10_000.0}
REFUSED = {
    "another family": ("phi3", {}, "models of family 'phi3' cannot be exported to GGUF; supported are llama, mistral"),
    "an activation": (
        "llama",
        {"hidden_act": "gelu"},
        "the model's hidden_act is 'gelu', and llama.cpp assumes 'silu'",
    ),
    "a rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE}}, "rope_type is 'dynamic'"),
    "a setting of YaRN": (
        "llama",
        {"rope_parameters": {**YARN, "beta_fast": 16}},
        "beta_fast is 16, and llama.cpp assumes 32",
    ),
    "YaRN that is not rounded": ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate is False"),
    "Llama 3's rope elsewhere": ("qwen2", {"rope_parameters": LLAMA3}, "assumes 'default or linear or yarn' for qwen2"),
    "biases elsewhere": ("qwen3", {"attention_bias": True}, "attention_bias is True, and llama.cpp assumes False"),
    "heads of another size": ("qwen2", {"head_dim": 16}, "head_dim is 16, and llama.cpp assumes 8"),
    "Gemma 2 without a cap": ("gemma2", {"attn_logit_softcapping": None}, "is None, and llama.cpp assumes 'a number'"),
    "a scale of queries": (
        "gemma2",
        {"query_pre_attn_scalar": 9},
        "query_pre_attn_scalar is 9, and llama.cpp assumes 8",
    ),
    "another order of layers": (
        "gemma2",
        {"layer_types": ["full_attention", "sliding_attention"]},
        r"layer_types is \['full_attention', 'sliding_attention'\], and llama.cpp assumes \['sliding_attention'",
    ),
    "a local rope": (
        "gemma3_text",
        {
            **GEMMA3,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        "rope_theta of layers with a window is 5000.0, and llama.cpp assumes 10000",
    ),
    "sight of the future": (
        "gemma3_text",
        {**GEMMA3, "use_bidirectional_attention": True},
        "use_bidirectional_attention is True, and llama.cpp assumes False",
    ),
    "a cap that it does not read": (
        "gemma3_text",
        {**GEMMA3, "attn_logit_softcapping": 30.0},
        "attn_logit_softcapping is 30.0, and llama.cpp assumes None",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(what):
    family, settings, words = REFUSED[what]
    with pytest.raises(UnsupportedModelError, match=words):
        family_of(plain_model(family, **settings).config)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_taken(family):
    assert family_of(plain_model(family).config) is FAMILIES[family]


@pytest.mark.parametrize(("window", "context"), [(5, 5), (200, 128)])
def test_the_context_ends_with_a_window_that_llama_cpp_does_not_have(caplog, window, context):
    config = plain_model("mistral", sliding_window=window).config
    with caplog.at_level(logging.WARNING, "quietstar"):
        assert fields_of(config, FAMILIES["mistral"])["context_length"] == context
    assert ("see 5 tokens back, which llama.cpp does not support for llama" in caplog.text) is (window == 5)


def test_a_window_that_it_has_is_in_the_file(caplog):
    fields = fields_of(plain_model("gemma2").config, FAMILIES["gemma2"])
    assert (fields["context_length"], fields["attention.sliding_window"]) == (128, 5)
    assert not caplog.records


def test_the_largest_gemmas_scale_queries_by_their_width_per_head():
    """Gemma 2 27B has 46 layers of 32 heads of 128 at a width of 4,608, and divides by the root of 144."""
    shape = {"num_hidden_layers": 46, "hidden_size": 36, "layer_types": ["sliding_attention", "full_attention"] * 23}
    with pytest.raises(UnsupportedModelError, match=r"query_pre_attn_scalar is 8, and llama\.cpp assumes 9"):
        family_of(plain_model("gemma2", **shape).config)
    assert family_of(plain_model("gemma2", **shape, query_pre_attn_scalar=9).config)
