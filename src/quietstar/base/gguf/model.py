"""Models in GGUF files: config, weights and tokenizer, as if they came from an ordinary folder.

transformers unpacks the weights. What it leaves behind of how they were packed is taken off at once, and what it makes
of the tokenizer and the special tokens is compared with what the file says of them.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator
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

from quietstar.base.gguf.header import GGUFHeader, read_header
from quietstar.base.gguf.rope import FREQUENCIES, rope_scaling
from quietstar.base.gguf.tokens import TRANSFORMERS, checked, set_special_ids, special_ids
from quietstar.base.sharding import is_partitioned
from quietstar.base.sources import Source
from quietstar.base.untrusted import check_alone, check_fields, check_size
from quietstar.config import packing_of
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, UnsupportedModelError, reason, shown

logger = logging.getLogger(__name__)

PLACES = frozenset({"subfolder", "revision", "cache_dir", "token", "trust_remote_code", "gguf_file"})
"""arguments of `from_pretrained` that no file on this machine needs"""


def gguf_config(source: Source) -> PreTrainedConfig:
    """The config that transformers makes of a GGUF file's metadata.

    Raises:
        CheckpointError: the file is damaged.
        SettingsError: it asks for what no model needs.
        UnsupportedModelError: transformers does not know its architecture.
    """
    return _config(source, _header(source))


def gguf_model(source: Source, **kwargs: Any) -> PreTrainedModel:
    """The language model in a GGUF file, its weights unpacked.

    Args:
        source: where it is.
        kwargs: as `AutoModelForCausalLM.from_pretrained` takes them. dtype "auto" is float32.

    Raises:
        CheckpointError: the file is damaged, or lacks weights.
        SettingsError: it asks for what no model needs, or its weights are to be packed anew.
        UnsupportedModelError: transformers does not know its architecture.
    """
    if kwargs.pop("quantization_config", None) is not None:
        raise SettingsError(
            f"{source.name} is a GGUF file, whose weights are unpacked as they are read; to load them in 4 bits, write "
            f"an ordinary folder first (quietstar convert {source.name} FOLDER), and load that"
        )
    how: dict[str, Any] = {name: value for name, value in kwargs.items() if name not in PLACES}
    dtype = how.pop("torch_dtype", None) or how.get("dtype")
    how["dtype"] = torch.float32 if dtype in (None, "auto") else dtype
    header = _header(source)
    how["config"] = how.get("config") or _config(source, header)

    def skeleton() -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(copy.deepcopy(how["config"]))

    with _loading(header):
        check_alone(source.folder)
        check_size(source.name, source.file.stat().st_size, skeleton)
        model, info = AutoModelForCausalLM.from_pretrained(
            source.folder,
            gguf_file=source.gguf_file,
            quantization_config=GgufConfig(dequantize=True),  # without it the model may not be trained or saved
            output_loading_info=True,
            **how,
        )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{source.name} lacks {len(missing)} of the model's weights, first {missing[0]}")
    _check_shapes(header, model, skeleton)
    _warn_of_unread(header, model)
    model.name_or_path = model.config.name_or_path = source.name
    set_special_ids(model, header)
    return model


def gguf_tokenizer(source: Source, **kwargs: Any) -> Tokenizer | None:
    """The tokenizer in a GGUF file; None where it has none.

    Raises:
        CheckpointError: the file is damaged, or transformers makes another tokenizer of it than it says.
    """
    header = _header(source)
    if not header.tokens:
        return None
    how = {name: value for name, value in kwargs.items() if name not in PLACES}
    with _loading(header):
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, gguf_file=source.gguf_file, trust_remote_code=False, **how
        )
        tokenizer = checked(tokenizer, header)
    tokenizer.name_or_path = source.name
    return tokenizer


def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """A model that somebody else has loaded, without what transformers keeps of how a GGUF file packs its weights.

    Raises:
        UnsupportedModelError: its weights are still packed.
    """
    packing = getattr(model.config, "quantization_config", None)
    if packing_of(packing) != "gguf":
        return model
    if any(not tensor.is_floating_point() for tensor in (*model.parameters(), *model.state_dict().values())):
        raise UnsupportedModelError(
            "the base model's weights are packed as in its GGUF file, and do not train; load it with "
            "quantization_config=GgufConfig(dequantize=True), or give from_base the file"
        )
    model.hf_quantizer.remove_quantization_config(model)
    vars(model.config).pop("_model_name_or_path", None)
    return model


def _header(source: Source) -> GGUFHeader:
    """The file's header, its special tokens looked at before transformers works with them."""
    header = read_header(source.file)
    if header.tokens:
        special_ids(header)
    return header


def _check_shapes(header: GGUFHeader, model: PreTrainedModel, skeleton: Callable[[], PreTrainedModel]) -> None:
    """Raise CheckpointError where weights are not as the config has them: some versions of transformers let it pass."""
    with torch.device("meta"):
        described = {name: parameter.shape for name, parameter in skeleton().named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.shape != described[name] and not is_partitioned(parameter):
            raise CheckpointError(
                f"{header.file} describes a model whose {name} is {list(described[name])}, and holds one of "
                f"{list(parameter.shape)}; get it again, or give another one"
            )


def _warn_of_unread(header: GGUFHeader, model: PreTrainedModel) -> None:
    """Warn of weights that the model has no place for: what they do is lost."""
    scaling = rope_scaling(header) or {}
    read = {FREQUENCIES} if scaling.get("rope_type") == "llama3" else set()
    n_read = sum(parameter.numel() for parameter in model.parameters())
    n_read += sum(math.prod(header.shapes.get(name, (0,))) for name in read)
    if (n := header.n_weights - n_read) > 0:
        named = ", ".join(name for name in header.shapes if "rope" in name and name not in read)
        logger.warning(
            "%s holds %s weights for which %s has no place%s: what they do is lost, and predictions may differ from "
            "the original's; its own folder has them all",
            header.file,
            f"{n:,}",
            TRANSFORMERS,
            f" ({named})" if named else "",
        )


@contextmanager
def _loading(header: GGUFHeader) -> Iterator[None]:
    """Say in one line of our own errors why a file whose header is sound cannot be loaded."""
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:
        said = f"{header.file} has architecture {shown(header.architecture)}, and {TRANSFORMERS}"
        if any(word in str(error).lower() for word in ("architecture", "supported", "unrecognized", "unknown")):
            raise UnsupportedModelError(
                f"{said} does not load it from a GGUF file ({reason(error)}); give the model's own folder or hub name"
            ) from error
        raise CheckpointError(
            f"{said} cannot make a model of it ({reason(error)}); get it again, or give another one"
        ) from error


def _config(source: Source, header: GGUFHeader) -> PreTrainedConfig:
    with _loading(header):
        fields, _ = PreTrainedConfig.get_config_dict(source.folder, gguf_file=source.gguf_file)
        fields.pop("_model_name_or_path", None)  # the metadata's title, which is no name that can be loaded
        if (scaling := rope_scaling(header)) is not None:
            fields["rope_scaling"] = scaling
        check_fields(fields, source.name)
        config = AutoConfig.for_model(**fields)
        config.name_or_path = source.name
        return config
