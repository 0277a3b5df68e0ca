"""The cases of benchmarks/memory.py: base models with random weights, and training steps of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from quietstar.scaling.step import Step

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": dict(
        vocab_size=16_000,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    ),
    "gpt2": dict(
        vocab_size=16_000,
        n_embd=256,
        n_layer=6,
        n_head=8,
        n_positions=1024,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "gemma3_text": dict(
        vocab_size=96_000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    ),
    "deep": dict(
        model_type="qwen3",
        vocab_size=8_000,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
    ),
    "wide": dict(
        model_type="mistral",
        vocab_size=8_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        sliding_window=None,
    ),
}
"""base models with random weights: Llama's layers; GPT-2's layers with tied embeddings; Gemma's, with a large tied
vocabulary; many layers; wide layers, where weights, gradients and AdamW's states dominate"""


@dataclass(frozen=True)
class Case:
    """A line of the table."""

    family: str
    batch: int = 1
    length: int = 128
    n_ahead: int = 6
    n_ahead_talk: int = 3
    n_passes: int = 2
    fraction: float = 1.0
    checkpointing: bool = False
    lora_r: int = 0
    """rank of adapters; 0 trains all weights"""
    frozen_base: bool = False
    """the adapters act in branches alone; `computed` does not know it, and the arithmetic does"""
    bfloat16: bool = False
    """bfloat16 autocast over float32 weights"""
    bfloat16_weights: bool = False
    """bfloat16 weights as well"""
    accumulation: int = 1
    """batches of the step"""

    @property
    def step(self) -> Step:
        """The arguments of the formulas."""
        return Step(
            B=self.batch,
            S=self.length,
            n_ahead=self.n_ahead,
            M=self.n_ahead_talk,
            P=self.n_passes,
            fraction=self.fraction,
            checkpointing=self.checkpointing,
            frozen_base=self.frozen_base,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base model's weights."""
        return torch.bfloat16 if self.bfloat16_weights else torch.float32

    @property
    def lora(self) -> dict[str, Any] | None:
        """Arguments of `peft.LoraConfig`, or None."""
        return {"r": self.lora_r, "lora_alpha": 2 * self.lora_r} if self.lora_r else None


LLAMA, GPT2, GEMMA = Case("llama"), Case("gpt2"), Case("gemma3_text")
CASES = {
    "llama": LLAMA,
    "llama-rows": replace(LLAMA, batch=3, length=64),
    "llama-long": replace(LLAMA, length=384, fraction=0.25),
    "llama-thought": replace(LLAMA, n_ahead=12, n_ahead_talk=4),
    "llama-short-thought": replace(LLAMA, batch=2, n_ahead=3, n_ahead_talk=1),
    "llama-no-word": replace(LLAMA, batch=2, n_ahead=2, n_ahead_talk=6),
    "llama-passes": replace(LLAMA, n_passes=4),
    "llama-one-pass": replace(LLAMA, batch=2, n_passes=1),
    "llama-quarter": replace(LLAMA, batch=4, fraction=0.25),
    "llama-checkpointing": replace(LLAMA, batch=4, checkpointing=True),
    "llama-checkpointing-quarter": replace(LLAMA, batch=8, fraction=0.25, checkpointing=True),
    "llama-lora": replace(LLAMA, lora_r=8),
    "llama-lora-checkpointing": replace(LLAMA, batch=6, lora_r=8, checkpointing=True),
    "llama-autocast": replace(LLAMA, bfloat16=True),
    "llama-bfloat16": replace(LLAMA, batch=2, bfloat16=True, bfloat16_weights=True),
    "llama-accumulation": replace(LLAMA, accumulation=2),
    "gpt2": GPT2,
    "gpt2-checkpointing": replace(GPT2, batch=4, checkpointing=True),
    "gemma": GEMMA,
    "gemma-checkpointing": replace(GEMMA, checkpointing=True),
    "gemma-lora": replace(GEMMA, lora_r=8),
    "gemma-autocast": replace(GEMMA, bfloat16=True),
    "gemma-autocast-checkpointing": replace(GEMMA, bfloat16=True, checkpointing=True),
    "gemma-accumulation": replace(GEMMA, accumulation=2),
    "deep": replace(LLAMA, family="deep"),
    "deep-checkpointing": replace(LLAMA, family="deep", batch=4, checkpointing=True),
    "wide": replace(LLAMA, family="wide", fraction=0.25),
    "wide-checkpointing": replace(LLAMA, family="wide", checkpointing=True),
    "wide-accumulation": replace(LLAMA, family="wide", fraction=0.25, accumulation=2),
    "wide-accumulation-checkpointing": replace(LLAMA, family="wide", checkpointing=True, accumulation=2),
    "wide-accumulation-bfloat16": replace(
        LLAMA, family="wide", fraction=0.25, bfloat16=True, bfloat16_weights=True, accumulation=2
    ),
}


def base_config(family: str, **settings: Any) -> PreTrainedConfig:
    """Return the base model's config."""
    sizes = {"model_type": family, **FAMILIES[family], **settings}
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
