"""Sizes of a model, from its config. Only the config is downloaded, and no memory is allocated for weights."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from quietstar.attention import default_backend
from quietstar.attention.hook import own_implementation
from quietstar.base.configs import packing_of
from quietstar.base.gguf.model import gguf_config
from quietstar.base.loading import holds_thinking_model, loading
from quietstar.base.lora import add_lora
from quietstar.base.sources import find_source
from quietstar.base.ties import is_tied
from quietstar.base.untrusted import check_config
from quietstar.errors import SettingsError, UnsupportedModelError
from quietstar.heads import MixingHead, ThoughtEmbeddings
from quietstar.scaling.kept import Kept, count_kept, counting, with_layers

PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B-Base": dict(
        model_type="qwen3", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=32_768,
        tie_word_embeddings=True, dtype="bfloat16",
    ),
    "mistralai/Mistral-7B-v0.1": dict(
        model_type="mistral", vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32_768, sliding_window=4096,
        dtype="bfloat16",
    ),
    "meta-llama/Meta-Llama-3-70B": dict(
        model_type="llama", vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=8192, dtype="bfloat16",
    ),
    "meta-llama/Llama-3.1-8B": dict(
        model_type="llama", vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131_072, dtype="bfloat16",
    ),
}  # fmt: skip
"""configs of published models, for planning without a hub (Qwen3: arXiv 2505.09388, table 1; Mistral 7B: arXiv
2310.06825, table 1; Llama 3 and 3.1: arXiv 2407.21783, table 3)"""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a thinking model; parameters are counted, not estimated."""

    name: str
    config: PreTrainedConfig
    """the base model's text config"""
    lora: dict[str, Any] | None
    """arguments of `peft.LoraConfig`; None if all weights train"""
    n_base: int
    """N: parameters of the base model, without adapters"""
    n_layers_all: int
    """parameters of all layers together, without adapters"""
    n_matrices: int
    """N_m: parameters in the matrices of all layers, with 2 operations each for a token"""
    n_norms: int
    """parameters of all layers outside their matrices"""
    n_adapters: int
    """parameters of low-rank adapters"""
    n_thoughts: int
    """parameters of mixing head and thought embeddings"""
    n_table: int
    """V x D, parameters of the embeddings"""
    is_tied: bool
    """whether embeddings and LM head are one matrix"""
    keeps_scores: bool
    """whether its attention keeps scores or dense masks, which are not counted"""

    @property
    def D(self) -> int:  # noqa: N802
        """Hidden size."""
        return int(self.config.hidden_size)

    @property
    def V(self) -> int:  # noqa: N802
        """Vocabulary size."""
        return int(self.config.vocab_size)

    @property
    def n_layers(self) -> int:
        """n"""
        return int(self.config.num_hidden_layers)

    @property
    def head_size(self) -> int:
        """d"""
        return int(getattr(self.config, "head_dim", None) or self.D // self.config.num_attention_heads)

    @property
    def query_width(self) -> int:
        """H x d"""
        return int(self.config.num_attention_heads) * self.head_size

    @property
    def key_width(self) -> int:
        """J x d"""
        J = getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads
        return int(J) * self.head_size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored weights; float32 if the config does not say."""
        stored = getattr(self.config, "dtype", None)
        return stored if isinstance(stored, torch.dtype) else getattr(torch, str(stored or "float32"))

    @property
    def n_root(self) -> int:
        """Parameters of the base model outside its layers."""
        return self.n_base - self.n_layers_all

    @property
    def n_small(self) -> int:
        """Parameters that are always trained, in float32: adapters, mixing head, thought embeddings."""
        return self.n_adapters + self.n_thoughts

    @property
    def n_trained(self) -> int:
        """Parameters that have a gradient."""
        return self.n_small + (0 if self.lora else self.n_base)

    def kept(self, dtype: torch.dtype, *, autocast: bool) -> Kept:
        """Return the activation memory of its layers; see `count_kept`.

        Raises:
            UnsupportedModelError: heads do not have the size that the config says.
        """
        kept = _kept(self, dtype, autocast)
        if kept.head_sizes != (self.head_size, self.head_size):
            raise UnsupportedModelError(
                f"{self.name} has heads of size {kept.head_sizes[0]} for queries and {kept.head_sizes[1]} for values, "
                f"but {self.head_size} in its config; plan with a model whose heads all have one size"
            )
        return kept

    def __hash__(self) -> int:
        return id(self)


@cache
def _kept(shape: Shape, dtype: torch.dtype, autocast: bool) -> Kept:
    return count_kept(shape.config, dtype, autocast=autocast, lora=shape.lora)


def shape_of(config: PreTrainedConfig, name: str = "", lora: dict[str, Any] | None = None) -> Shape:
    """Return the sizes of a thinking model, from its own config or its base model's.

    Raises:
        UnsupportedModelError: it is not a decoder-only model, or its layers are not recognized.
        SettingsError: the adapters do not fit it.
    """
    whole, config = config, config.get_text_config()
    with loading(name), torch.device("meta"):
        base_lm = AutoModelForCausalLM.from_config(config)
        thoughts = nn.ModuleList([MixingHead(config.hidden_size), ThoughtEmbeddings(config.hidden_size, 1.0)])
    layers = [module for module in base_lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    _check_counted(name or config.model_type, config, layers)
    _check_text_is_all(name or config.model_type, getattr(whole, "base_config", None) or whole, base_lm)
    matrices = [
        module.weight.numel()
        for layer in layers
        for module in layer.modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    n_base = base_lm.num_parameters()
    n_layers_all = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    return Shape(
        name=name or config.model_type,
        config=config,
        lora=lora,
        n_base=n_base,
        n_layers_all=n_layers_all,
        n_matrices=sum(matrices),
        n_norms=n_layers_all - sum(matrices),
        n_adapters=_count_adapters(config, lora) if lora else 0,
        n_thoughts=sum(parameter.numel() for parameter in thoughts.parameters()),
        n_table=base_lm.get_input_embeddings().weight.numel(),
        is_tied=is_tied(base_lm),
        keeps_scores=_keeps_scores(base_lm),
    )


def read_config(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of a model by hub name, folder or GGUF file; those in PUBLISHED need no hub.

    Raises:
        CheckpointError: it cannot be found, or the hub cannot be reached.
        UnsupportedModelError: it is not a decoder-only language model.
    """
    if name in PUBLISHED and not Path(name).exists():
        sizes = dict(PUBLISHED[name])
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    if not name:
        raise SettingsError("model is empty; give a hub name, or a folder with config.json")
    source = find_source(name)
    config = gguf_config(source) if source.gguf_file else _plain_config(name, trust_remote_code)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; choose a decoder-only model")
    return config


def _plain_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    with loading(name):
        if not (trust_remote_code or holds_thinking_model(name)):  # a thinking model's config checks itself
            check_config(name)
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def _check_counted(name: str, config: PreTrainedConfig, layers: list[nn.Module]) -> None:
    """Raise UnsupportedModelError for layers that the formulas do not cover."""
    modules = [module for layer in layers for module in layer.modules()]
    if len(layers) != config.num_hidden_layers or not layers:
        raise UnsupportedModelError(
            f"{name} has {config.num_hidden_layers} layers in its config, but {len(layers)} were recognized; plan with "
            "a Llama of the same sizes"
        )
    if any(isinstance(module, nn.Conv1d) for module in modules):
        raise UnsupportedModelError(
            f"{name} has convolutions in its layers, and branches cannot share their states; choose a model with "
            "attention layers only"
        )
    if any(parameter.dim() > 2 for layer in layers for parameter in layer.parameters()):
        raise UnsupportedModelError(
            f"{name} has experts, whose load a config does not tell; plan with a dense model of the same sizes"
        )
    if any(getattr(module, "is_causal", None) is False for module in modules):
        raise UnsupportedModelError(f"{name} is an encoder, whose tokens see later ones; choose a decoder-only model")


def _check_text_is_all(name: str, config: PreTrainedConfig, text_lm: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if a model has more than its text model, or is quantized."""
    if quantization := getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            f"the weights of {name} are quantized (quantization_config: {packing_of(quantization)}), and cannot be "
            "trained; plan with the original model, and --lora --load_in_4bit"
        )
    if config.get_text_config() is config:
        return
    with loading(name), torch.device("meta"):
        n_beside = AutoModelForCausalLM.from_config(config).num_parameters() - text_lm.num_parameters()
    if n_beside:
        raise UnsupportedModelError(
            f"{name} has {n_beside:,} weights outside its text model, for example for images, which are not counted; "
            "plan with a folder whose config.json is its text_config"
        )


def _count_adapters(config: PreTrainedConfig, lora: dict[str, Any]) -> int:
    """Return the number of parameters of adapters, from models of one and two layers; all layers are alike."""
    counts = []
    for n_layers in (1, 2):
        with counting(f"adapters of family {config.model_type!r}"), torch.device("meta"):
            few = AutoModelForCausalLM.from_config(with_layers(config, n_layers))
            n_base = few.num_parameters()
            add_lora(few, lora)
            counts.append(few.num_parameters() - n_base)
    return counts[0] + (config.num_hidden_layers - 1) * (counts[1] - counts[0])


def _keeps_scores(base_lm: PreTrainedModel) -> bool:
    """Whether text uses eager attention, or branches use dense masks: without a hook, or with dropout."""
    config = base_lm.config.get_text_config()
    dropout = getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None)
    return bool(dropout) or default_backend(base_lm) == "dense" or own_implementation(base_lm) == "eager"
