"""Tiny models of every family, loud enough that attention and thoughts change logits by more than 1.

A random model with the usual initialisation predicts almost uniformly, and tests on it pass with many bugs in
place. Here every matrix is scaled up, and the mixing head is random, not zero.
"""

import copy

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from quietstar import QuietStarForCausalLM

VOCABULARY = 61
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_NO_GROUPS = {name: value for name, value in _COMMON.items() if name != "num_key_value_heads"}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GEMMA = {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, dict] = {
    "llama": dict(_COMMON),
    "mistral": dict(_COMMON, sliding_window=None),
    "mistral-window": dict(_COMMON, sliding_window=5),
    "qwen2": dict(_COMMON),
    "qwen2-window": dict(_COMMON, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": dict(_COMMON, head_dim=8),
    "gemma2": dict(_COMMON, **_GEMMA, query_pre_attn_scalar=8),
    "gemma3_text": dict(_COMMON, **_GEMMA, query_pre_attn_scalar=8),
    "phi3": dict(_COMMON),
    "phi3-window": dict(_COMMON, sliding_window=5),
    "olmo2": dict(_COMMON),
    "smollm3": dict(_COMMON, no_rope_layers=[1, 0]),
    "granite": dict(
        _COMMON,
        logits_scaling=2.0,
        embedding_multiplier=3.0,
        residual_multiplier=0.7,
        attention_multiplier=0.5,
    ),
    "gpt_neox": dict(_NO_GROUPS),
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "mixtral": dict(_COMMON, **_MOE),
    "mixtral-window": dict(_COMMON, **_MOE, sliding_window=5),
}
"""model type, with what sets it apart behind a hyphen -> settings of its config"""

WINDOWED = [name for name in FAMILIES if "window" in name or "gemma" in name]


@torch.no_grad()
def loud(module: nn.Module, seed: int = 0) -> None:
    """Draw every matrix anew, wide enough that what a token sees changes what is predicted."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            parameter.copy_(parameter + 0.1 * noise)
        elif "embed" in name or "wte" in name or "wpe" in name:
            parameter.copy_(noise * 0.7)
        else:
            parameter.copy_(noise * 1.6 / parameter.shape[-1] ** 0.5)


def tiny_base(family: str = "llama", seed: int = 0, **settings: object) -> PreTrainedModel:
    """A tiny, loud base model in evaluation mode."""
    config = AutoConfig.for_model(family.split("-")[0], **{**FAMILIES[family], **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base_lm = AutoModelForCausalLM.from_config(config)
    loud(base_lm, seed)
    return base_lm.eval()


def tiny_model(
    family: str = "llama", seed: int = 0, base: dict | None = None, **settings: object
) -> QuietStarForCausalLM:
    """A tiny thinking model with a random mixing head and random thought embeddings, in evaluation mode.

    A copy of its own for every caller; making and checking one takes longer than copying it.
    """
    key = repr((family, seed, base, settings))
    if key not in _MADE:
        base_lm = tiny_base(family, seed, **(base or {}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _MADE[key] = QuietStarForCausalLM.from_base(base_lm, **settings)
        make_thoughtful(_MADE[key], seed)
    return copy.deepcopy(_MADE[key])


_MADE: dict[str, QuietStarForCausalLM] = {}


def make_thoughtful(model: QuietStarForCausalLM, seed: int = 0) -> None:
    """Give a fresh model a random mixing head and random thought embeddings, as loud as the rest."""
    loud(model.mixing_head, seed + 1)
    if model.end_head is not None:
        loud(model.end_head, seed + 3)
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for parameter in model.thought_embeddings.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / model.config.embedding_scale)


def random_thoughts(model: QuietStarForCausalLM, B: int, S: int, P: int = 1, seed: int = 0) -> torch.Tensor:
    """[B, P, S, K] token ids to think instead of sampling."""
    generator = torch.Generator().manual_seed(seed)
    shape = (B, P, S, model.config.n_thought_tokens)
    return torch.randint(model.config.vocab_size, shape, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    """A source of random numbers."""
    return torch.Generator().manual_seed(seed)


def to_left(values: torch.Tensor, attention_mask: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Rows padded on the right -> the same rows padded on the left, along dimension `dim` of [B, ...]."""
    n_padded = (attention_mask == 0).sum(1).tolist()
    return torch.stack([row.roll(n, dims=dim - 1) for row, n in zip(values.unbind(0), n_padded, strict=True)])


def texts(*lengths: int, seed: int = 0, left: bool = False) -> dict[str, torch.Tensor]:
    """Random rows of those lengths, padded on one side: input_ids, attention_mask and labels."""
    generator = torch.Generator().manual_seed(seed)
    S = max(lengths)
    input_ids = torch.randint(3, VOCABULARY, (len(lengths), S), generator=generator)
    index = torch.arange(S)
    real = torch.stack([index >= S - n if left else index < n for n in lengths])
    return {
        "input_ids": input_ids.masked_fill(~real, 0),
        "attention_mask": real.long(),
        "labels": input_ids.masked_fill(~real, -100),
    }
