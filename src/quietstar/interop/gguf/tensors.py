"""Weights of a model under their names, and in the order of rows, that llama.cpp has them."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from quietstar.base.gguf.rope import FREQUENCIES, llama3_divisors
from quietstar.errors import UnsupportedModelError, need
from quietstar.interop.gguf.families import Family, head_size, ropes
from quietstar.interop.shards import without_tied


def tensors_of(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Return the name in the file and the values of each weight; second names of tied weights are left out.

    Raises:
        UnsupportedModelError: llama.cpp has no name for a weight.
    """
    gguf, config = need("gguf", "gguf", "GGUF files"), model.config
    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[family.architecture]
    table = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    n_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    rope, _ = ropes(config)
    if rope["rope_type"] == "llama3":
        names = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        yield FREQUENCIES, llama3_divisors(head_size(config) // 2, *(rope[name] for name in names))
    for name, tensor in without_tied(model, model.state_dict()).items():
        renamed = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise UnsupportedModelError(
                f"the model has a weight {name}, which llama.cpp does not have for {family.architecture}; this model "
                "cannot be exported to GGUF"
            )
        module = name.split(".")[-2]
        if family.turns and module in n_heads:
            tensor = _in_turns(tensor, n_heads[module])
        if family.norm_offset and module.endswith("norm"):
            tensor = tensor.float() + family.norm_offset
        yield renamed, tensor


def _in_turns(tensor: Tensor, n_heads: int) -> Tensor:
    """Return the rows of queries or keys with the two halves of each head interleaved, as rope pairs them there."""
    return tensor.view(n_heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
