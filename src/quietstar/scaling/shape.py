"""What a model's config says of its size. Nothing is downloaded but the config, and no weight has memory."""

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
from quietstar.base.gguf import gguf_config
from quietstar.base.loading import holds_thinking_model, loading
from quietstar.base.lora import add_lora
from quietstar.base.sources import find_source
from quietstar.base.ties import is_tied
from quietstar.base.untrusted import check_config
from quietstar.config import packing_of
from quietstar.errors import SettingsError, UnsupportedModelError
from quietstar.heads import MixingHead, ThoughtEmbeddings
from quietstar.scaling.kept import Kept, count_kept, counting, with_layers

PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B-Base": dict(
        model_type="qwen3",
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
    "mistralai/Mistral-7B-v0.1": dict(
        model_type="mistral",
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32_768,
        sliding_window=4096,
        dtype="bfloat16",
    ),
    "meta-llama/Meta-Llama-3-70B": dict(
        model_type="llama",
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        dtype="bfloat16",
    ),
}
"""what the config.json beside each of these says (Qwen3: arXiv 2505.09388, table 1; Mistral 7B: arXiv 2310.06825,
table 1; Llama 3: arXiv 2407.21783, table 3): for planning without a hub"""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a thinking model. Parameters are counted, not estimated."""

    name: str
    config: PreTrainedConfig
    """the base model's text config"""
    lora: dict[str, Any] | None
    """settings of adapters; None where all weights train"""
    n_base: int
    """N: parameters of the base model, without adapters"""
    n_layers_all: int
    """parameters of all layers together, without adapters"""
    n_matrices: int
    """those in the matrices of all layers: 2 operations each for a token"""
    n_norms: int
    """parameters of all layers that are in no matrix"""
    n_adapters: int
    """parameters of low-rank adapters"""
    n_thoughts: int
    """parameters of mixing head and thought embeddings"""
    n_table: int
    """V x D, of the embeddings"""
    is_tied: bool
    """whether embeddings and LM head are one matrix"""
    keeps_scores: bool
    """whether its attention keeps scores or dense masks, whose memory is not counted here"""

    @property
    def D(self) -> int:  # noqa: N802
        """Hidden size."""
        return int(self.config.hidden_size)

    @property
    def V(self) -> int:  # noqa: N802
        """Vocabulary."""
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
        """That the weights are stored in; float32 where the config does not say."""
        stored = getattr(self.config, "dtype", None)
        return stored if isinstance(stored, torch.dtype) else getattr(torch, str(stored or "float32"))

    @property
    def n_root(self) -> int:
        """Parameters of the base model outside its layers."""
        return self.n_base - self.n_layers_all

    @property
    def n_small(self) -> int:
        """Parameters that are float32 and trained whatever else is: adapters, mixing head, thought embeddings."""
        return self.n_adapters + self.n_thoughts

    @property
    def n_trained(self) -> int:
        """Parameters that have a gradient."""
        return self.n_small + (0 if self.lora else self.n_base)

    def kept(self, dtype: torch.dtype, *, autocast: bool) -> Kept:
        """What its layers keep for their gradient; see `count_kept`.

        Raises:
            UnsupportedModelError: heads are not of the size that the config says.
        """
        kept = _kept(self, dtype, autocast)
        if kept.head_sizes != (self.head_size, self.head_size):
            raise UnsupportedModelError(
                f"{self.name} has heads of {kept.head_sizes[0]} numbers for queries and {kept.head_sizes[1]} for "
                f"values, and {self.head_size} by its config; plan with a model whose heads are alike"
            )
        return kept

    def __hash__(self) -> int:
        return id(self)


@cache
def _kept(shape: Shape, dtype: torch.dtype, autocast: bool) -> Kept:
    return count_kept(shape.config, dtype, autocast=autocast, lora=shape.lora)


def shape_of(config: PreTrainedConfig, name: str = "", lora: dict[str, Any] | None = None) -> Shape:
    """The sizes of a thinking model around a base model's config.

    Args:
        config: of the base model, or of a thinking model.
        name: to call it by.
        lora: settings of adapters, as `peft.LoraConfig` takes them.

    Raises:
        UnsupportedModelError: it is no decoder-only model, or its layers are not found.
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
    """The config of a model by hub name, folder or GGUF file; of the few in PUBLISHED without a hub.

    Raises:
        CheckpointError: there is none of that name, or the hub cannot be reached.
        UnsupportedModelError: it is no decoder-only language model.
    """
    if name in PUBLISHED and not Path(name).exists():
        sizes = dict(PUBLISHED[name])
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    if not name:
        raise SettingsError("model is empty; give a hub name, or a folder with config.json")
    source = find_source(name)
    config = gguf_config(source) if source.gguf_file else _ordinary_config(name, trust_remote_code)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; choose a decoder-only model")
    return config


def _ordinary_config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    with loading(name):
        if not (trust_remote_code or holds_thinking_model(name)):  # whose config looks through itself
            check_config(name)
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def _check_counted(name: str, config: PreTrainedConfig, layers: list[nn.Module]) -> None:
    """Raise UnsupportedModelError for layers that the formulas are not of."""
    modules = [module for layer in layers for module in layer.modules()]
    if len(layers) != config.num_hidden_layers or not layers:
        raise UnsupportedModelError(
            f"{name} has {len(layers)} layers that are known here and {config.num_hidden_layers} in its config; plan "
            "with a Llama of the same sizes"
        )
    if any(isinstance(module, nn.Conv1d) for module in modules):
        raise UnsupportedModelError(
            f"{name} has convolutions in its layers, whose states no branch of a thought can share; choose a model "
            "whose layers attend"
        )
    if any(parameter.dim() > 2 for layer in layers for parameter in layer.parameters()):
        raise UnsupportedModelError(
            f"{name} has experts, whose share of the tokens no config says; plan with a dense model of the same sizes"
        )
    if any(getattr(module, "is_causal", None) is False for module in modules):
        raise UnsupportedModelError(
            f"{name} is an encoder, whose tokens see those after them; choose a decoder-only model"
        )


def _check_text_is_all(name: str, config: PreTrainedConfig, text_lm: PreTrainedModel) -> None:
    """Raise UnsupportedModelError where a model is loaded with more than its text model, or packed."""
    if packed := getattr(config, "quantization_config", None):
        raise UnsupportedModelError(
            f"the weights of {name} are packed (quantization_config: {packing_of(packed)}), and do not "
            "train; plan with the model that they were made of, and --lora --load_in_4bit"
        )
    if config.get_text_config() is config:
        return
    with loading(name), torch.device("meta"):
        n_beside = AutoModelForCausalLM.from_config(config).num_parameters() - text_lm.num_parameters()
    if n_beside:
        raise UnsupportedModelError(
            f"{name} has {n_beside:,} weights beside its text model, for images, say, which are not counted; plan with "
            "a folder whose config.json is its text_config"
        )


def _count_adapters(config: PreTrainedConfig, lora: dict[str, Any]) -> int:
    """Parameters of the adapters, all layers' being alike."""
    found = []
    for n_layers in (1, 2):
        with counting(f"adapters of family {config.model_type!r}"), torch.device("meta"):
            few = AutoModelForCausalLM.from_config(with_layers(config, n_layers))
            n_base = few.num_parameters()
            add_lora(few, lora)
            found.append(few.num_parameters() - n_base)
    return found[0] + (config.num_hidden_layers - 1) * (found[1] - found[0])


def _keeps_scores(base_lm: PreTrainedModel) -> bool:
    """Whether text attends eagerly, or branches through dense masks: what cannot be hooked, or has dropout."""
    config = base_lm.config.get_text_config()
    dropout = getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None)
    return bool(dropout) or default_backend(base_lm) == "dense" or own_implementation(base_lm) == "eager"
