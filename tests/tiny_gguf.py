"""Tiny models as GGUF files, made with the package that llama.cpp's own converters use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import tiny_base

gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra: gguf)")

TITLE = "Tiny 1K Lc2 Mix1"
NORMAL, CONTROL = 1, 3
MERGES = [("a", "b"), ("Ġ", "ab")]
WORDS = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "Ġab"]
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
"""modules of a Llama, as llama.cpp calls them"""
Changes = dict[str, Any]


def tiny_llama(**settings: Any) -> PreTrainedModel:
    """The model that the file holds."""
    return tiny_base("llama", **{"vocab_size": len(WORDS), "pad_token_id": 2, **settings})


def reference_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that the file holds."""
    vocabulary = {word: id for id, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def metadata_of(model: PreTrainedModel) -> Changes:
    """What llama.cpp's converter writes for a Llama."""
    config = model.config
    return {
        "general.architecture": "llama",
        "general.name": TITLE,
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * (len(WORDS) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def tensors_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A Llama's weights under llama.cpp's names; a query's and a key's halves are dealt out by turns there."""
    found = {}
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    tied = model.config.tie_word_embeddings
    for name, parameter in model.state_dict().items():
        *path, module, kind = name.split(".")
        if module in heads:
            n_rows, D = parameter.shape
            parameter = parameter.view(heads[module], 2, -1, D).transpose(1, 2).reshape(n_rows, D)
        block = f"blk.{path[2]}." if "layers" in path else ""
        if not (tied and module == "lm_head"):
            found[f"{block}{NAMES[module]}.{kind}"] = parameter
    return found


def write_gguf(
    file: Path, model: PreTrainedModel, metadata: Changes | None = None, tensors: Changes | None = None
) -> Path:
    """Write a model into a GGUF file.

    Args:
        file: to write.
        model: a Llama, with the vocabulary of WORDS.
        metadata: fields that are others than the model's; None leaves one out.
        tensors: the same of its tensors.
    """
    fields = metadata_of(model) | (metadata or {})
    writer = gguf.GGUFWriter(file, fields.pop("general.architecture"))
    for name, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for name, tensor in (tensors_of(model) | (tensors or {})).items():
        if tensor is not None:
            writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
