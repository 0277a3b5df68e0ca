"""Models in GGUF files: config, weights and tokenizer, as if loaded from a plain folder.

transformers dequantizes the weights. The quantization config that it leaves in the model is removed, and its tokenizer
and special tokens are compared with the file's.
"""

import copy
import functools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.configs import packing_of
from quietstar.base.gguf.header import GGUFHeader, read_header
from quietstar.base.gguf.overlooked import overlooked_settings
from quietstar.base.gguf.rope import FREQUENCIES
from quietstar.base.gguf.tokens import TRANSFORMERS, corrected, set_special_ids, special_ids
from quietstar.base.sharding import is_partitioned
from quietstar.base.sources import Source
from quietstar.base.untrusted import check_alone, check_fields, check_size
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, UnsupportedModelError, reason, shown

logger = logging.getLogger(__name__)

PLACES = frozenset({"subfolder", "revision", "cache_dir", "token", "trust_remote_code", "gguf_file"})
"""arguments of `from_pretrained` that a local file does not need"""


def gguf_config(source: Source) -> PreTrainedConfig:
    """Return the config that transformers builds from a GGUF file's metadata.

    Raises:
        CheckpointError: the file is damaged.
        SettingsError: the config fails `check_fields`.
        UnsupportedModelError: transformers does not know its architecture.
    """
    return _config(source, _header(source))


def gguf_model(source: Source, **kwargs: Any) -> PreTrainedModel:
    """Load the language model of a GGUF file, with dequantized weights.

    Keyword arguments are those of `AutoModelForCausalLM.from_pretrained`; dtype "auto" is float32.

    Raises:
        CheckpointError: the file is damaged, or lacks weights.
        SettingsError: the config fails `check_fields`, or a quantization_config was given.
        UnsupportedModelError: transformers does not know its architecture.
    """
    if kwargs.pop("quantization_config", None) is not None:
        raise SettingsError(
            f"{source.name} is a GGUF file, and its weights are dequantized on loading; to load them in 4 bits, write "
            f"a plain folder first (quietstar export {source.name} FOLDER --to plain), and load that"
        )
    how: dict[str, Any] = {name: value for name, value in kwargs.items() if name not in PLACES}
    dtype = how.pop("torch_dtype", None) or how.get("dtype")
    how["dtype"] = torch.float32 if dtype in (None, "auto") else dtype
    header = _header(source)
    how["config"] = how.get("config") or _config(source, header)

    @functools.cache
    def skeleton() -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(how["config"]))

    with _loading(header):
        check_alone(source.folder)
        check_size(source.name, source.file.stat().st_size, skeleton)
        model, info = AutoModelForCausalLM.from_pretrained(
            source.folder,
            gguf_file=source.gguf_file,
            quantization_config=GgufConfig(dequantize=True),  # a quantized model cannot be trained or saved
            output_loading_info=True,
            **how,
        )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{source.name} lacks {len(missing)} of the model's weights, first {missing[0]}")
    _check_shapes(header, model, skeleton())
    _warn_of_unused(header, model)
    model.name_or_path = model.config.name_or_path = source.name
    set_special_ids(model, header)
    return model


def gguf_tokenizer(source: Source, **kwargs: Any) -> Tokenizer | None:
    """Load the tokenizer of a GGUF file, or return None if it has none.

    Raises:
        CheckpointError: the file is damaged, or the tokenizer that transformers builds contradicts it.
    """
    header = _header(source)
    if not header.tokens:
        return None
    how = {name: value for name, value in kwargs.items() if name not in PLACES}
    with _loading(header):
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, gguf_file=source.gguf_file, trust_remote_code=False, **how
        )
        tokenizer = corrected(tokenizer, header)
    tokenizer.name_or_path = source.name
    return tokenizer


def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that the caller loaded, without the quantization config that transformers keeps of a GGUF file.

    Raises:
        UnsupportedModelError: its weights are still quantized.
    """
    if packing_of(getattr(model.config, "quantization_config", None)) != "gguf":
        return model
    if any(not tensor.is_floating_point() for tensor in (*model.parameters(), *model.state_dict().values())):
        raise UnsupportedModelError(
            "the base model's weights are still quantized as in its GGUF file, and cannot be trained; load it with "
            "quantization_config=GgufConfig(dequantize=True), or give from_base the file"
        )
    model.hf_quantizer.remove_quantization_config(model)
    vars(model.config).pop("_model_name_or_path", None)
    return model


def _header(source: Source) -> GGUFHeader:
    """Read the file's header, and check its special tokens before transformers uses them."""
    header = read_header(source.file)
    if header.tokens:
        special_ids(header)
    return header


def _check_shapes(header: GGUFHeader, model: PreTrainedModel, skeleton: PreTrainedModel) -> None:
    """Raise CheckpointError if shapes differ from the config's: some versions of transformers do not check."""
    described = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.shape != described[name] and not is_partitioned(parameter):
            raise CheckpointError(
                f"{header.file} has {name} of shape {list(parameter.shape)}, but its metadata describes "
                f"{list(described[name])}; download it again, or give another one"
            )


def _warn_of_unused(header: GGUFHeader, model: PreTrainedModel) -> None:
    """Warn of weights in the file that the loaded model does not use."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    used = {FREQUENCIES} if rope.get("rope_type") == "llama3" else set()
    n_used = sum(parameter.numel() for parameter in model.parameters())
    n_used += sum(math.prod(header.shapes.get(name, (0,))) for name in used)
    if (n := header.n_weights - n_used) > 0:
        named = ", ".join(name for name in header.shapes if "rope" in name and name not in used)
        logger.warning(
            "%s has %s weights that %s does not use%s, so predictions may differ from the original's; the model's own "
            "folder has them all",
            header.file,
            f"{n:,}",
            TRANSFORMERS,
            f" ({named})" if named else "",
        )


@contextmanager
def _loading(header: GGUFHeader) -> Iterator[None]:
    """Turn whatever transformers raises over a file with a valid header into a one-line error of this package."""
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:
        begin = f"{header.file} has architecture {shown(header.architecture)}, and {TRANSFORMERS}"
        if any(word in str(error).lower() for word in ("architecture", "supported", "unrecognized", "unknown")):
            raise UnsupportedModelError(
                f"{begin} does not load it from a GGUF file ({reason(error)}); give the model's own folder or hub name"
            ) from error
        raise CheckpointError(
            f"{begin} cannot load the file ({reason(error)}); download it again, or give another one"
        ) from error


def _config(source: Source, header: GGUFHeader) -> PreTrainedConfig:
    with _loading(header):
        fields, _ = PreTrainedConfig.get_config_dict(source.folder, gguf_file=source.gguf_file)
        fields.pop("_model_name_or_path", None)  # the title in the metadata, not a name that can be loaded
        fields |= overlooked_settings(header)
        check_fields(fields, source.name)
        config = AutoConfig.for_model(**fields)
        config.name_or_path = source.name
        return config
