"""A plain model written as one GGUF file."""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.errors import UnsupportedModelError, need
from quietstar.interop.gguf.families import family_of, fields_of
from quietstar.interop.gguf.tensors import tensors_of
from quietstar.interop.gguf.vocabulary import tokenizer_fields
from quietstar.runs.folders import UNFINISHED, flush

logger = logging.getLogger(__name__)

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""formats of weights -> their names in the package gguf"""
FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
"""formats of weights -> the file's general.file_type"""


def write_gguf(
    model: PreTrainedModel, tokenizer: Tokenizer, file: Path, *, dtype: str, name: str, license: str | None = None
) -> None:
    """Write a model as a GGUF file; after a crash there is no file of that name.

    Vectors, such as the weights of norms, are float32, as in files of llama.cpp's own converter. With q8_0, matrices
    whose rows do not divide into blocks of 32 are float16.

    Args:
        model: a plain model of one of `families.FAMILIES`.
        tokenizer: its tokenizer.
        file: to write.
        dtype: of matrices, one of TYPES.
        name: the model's name in the file.
        license: the model's licence, if it is known.

    Raises:
        UnsupportedModelError: llama.cpp does not compute what the model computes, or a weight does not fit the format.
        MissingExtraError: the package gguf is not installed.
    """
    gguf, config = need("gguf", "gguf", "GGUF files"), model.config
    family = family_of(config)
    ends = getattr(model.generation_config, "eos_token_id", None) or []
    n_rows = model.get_input_embeddings().weight.shape[0]
    fields = {f"{family.architecture}.{name}": value for name, value in fields_of(config, family).items()}
    fields |= tokenizer_fields(tokenizer, n_rows, ends if isinstance(ends, list) else [ends])
    fields |= {"general.type": "model", "general.name": name, "general.file_type": FILE_TYPES[dtype]}
    if license is not None:
        fields["general.license"] = license
    fields["general.quantization_version"] = gguf.GGML_QUANT_VERSION

    def kind_of(tensor: Tensor) -> Any:
        if tensor.dim() == 1:
            return gguf.GGMLQuantizationType.F32
        is_cut = dtype == "q8_0" and tensor.shape[-1] % 32
        return gguf.GGMLQuantizationType["F16" if is_cut else TYPES[dtype]]

    aside = file.with_name(f"{file.name}{UNFINISHED}")
    writer = gguf.GGUFWriter(aside, family.architecture)
    try:
        _add_fields(writer, fields)
        kinds = []
        for renamed, tensor in tensors_of(model, family):
            kinds.append(kind := kind_of(tensor))
            if kind == gguf.GGMLQuantizationType.F16:
                check_range([(renamed, tensor)], "float16")
            block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
            writer.add_tensor_info(renamed, shape, np.dtype(np.uint8), tensor.numel() // block * n_bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (_, tensor), kind in zip(tensors_of(model, family), kinds, strict=True):
            writer.write_tensor_data(gguf.quantize(tensor.detach().float().numpy(), kind))
        writer.close()
        flush(aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def check_range(weights: Iterable[tuple[str, Tensor]], dtype: str) -> None:
    """Raise UnsupportedModelError if a weight has a value that a dtype of torch does not have."""
    limit = torch.finfo(getattr(torch, dtype)).max
    for name, tensor in weights:
        if (size := float(torch.linalg.vector_norm(tensor.detach().float(), ord=torch.inf))) > limit:
            raise UnsupportedModelError(
                f"weight {name} has a value of {size:.3g}, and {dtype} ends at {limit:,.0f}; use float32 or bfloat16"
            )


def _add_fields(writer: Any, fields: Mapping[str, Any]) -> None:
    """Add fields to a file, in the type that Python's type and the format's description suggest."""
    for name, value in fields.items():
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case _:
                writer.add_array(name, value)
