"""Load base models and their tokenizers."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.gguf.model import gguf_model, gguf_tokenizer
from quietstar.base.ids import check_ids, first_token
from quietstar.base.sharding import gathered
from quietstar.base.sources import SHORT_NAMES, find_source, hub_arguments
from quietstar.base.untrusted import check_alone, check_config, check_folder, loading, near
from quietstar.config import QuietStarConfig
from quietstar.errors import CheckpointError, SettingsError

logger = logging.getLogger(__name__)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def first_thought_vector(base_lm: PreTrainedModel, text: str, tokenizer: Tokenizer | None) -> Tensor:
    """Return [D]: the embedding of a text's first token; without a tokenizer, the mean embedding.

    Raises:
        SettingsError: the text has no token, or one that the model has no embedding for.
    """
    embeddings = base_lm.get_input_embeddings()
    if tokenizer is None:
        logger.warning(
            "no tokenizer was given or found: start and end of a thought begin as the mean embedding, not as %r; "
            "pass tokenizer= to change that",
            text,
        )
        with gathered(embeddings):
            return embeddings.weight.float().mean(0)
    first = first_token(tokenizer, text, "initial_thought_text")
    check_ids(base_lm, [first], "initial_thought_text")
    with gathered(embeddings):
        return embeddings(torch.tensor(first, device=embeddings.weight.device))


def load_base(name: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load an ordinary language model by hub name, folder or GGUF file; kwargs are those of `from_pretrained`.

    Raises:
        CheckpointError: there is no model of that name, the hub cannot be reached, or the model needs code of its own.
        SettingsError: its config asks for something that no model needs; the name is not a name.
        UnsupportedModelError: it is not a decoder-only language model.
    """
    if not isinstance(name, (str, Path)):
        raise SettingsError(_no_name(name))
    kwargs = {"trust_remote_code": False, **kwargs}
    source = find_source(name, kwargs.pop("gguf_file", None), **hub_arguments(kwargs))
    if source.gguf_file:
        return gguf_model(source, **kwargs)
    with loading(name):
        check_alone(name, **hub_arguments(kwargs))
        if not kwargs["trust_remote_code"]:
            _check_before_loading(str(name), **kwargs)
        model, info = AutoModelForCausalLM.from_pretrained(str(name), output_loading_info=True, **kwargs)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{name} lacks {len(missing)} of the model's weights, first {missing[0]}; download it again, or give "
            "another one"
        )
    return model


def _no_name(given: object) -> str:
    """Return the message about something that is neither a model nor the name of one."""
    if hasattr(given, "merge_and_unload"):  # a PeftModel
        return (
            "the base model is a PeftModel, whose adapters act without thoughts, too; give model.merge_and_unload(), "
            "and lora={'r': 16} for adapters that learn to think"
        )
    return f"the base model is a {type(given).__name__}; give a model of transformers, or the name of one"


def _check_before_loading(
    name: str, config: PreTrainedConfig | None = None, subfolder: str = "", **kwargs: Any
) -> None:
    """Raise if a base model's config or files cannot be trusted; see `quietstar.base.untrusted`."""
    check_config(name, subfolder=subfolder, **hub_arguments(kwargs))
    if Path(name, subfolder).is_dir():
        no_code = {"trust_remote_code": False}
        config = config or AutoConfig.from_pretrained(name, subfolder=subfolder, **no_code)
        check_folder(Path(name, subfolder), lambda: AutoModelForCausalLM.from_config(copy.deepcopy(config), **no_code))


def holds_thinking_model(name: str | Path) -> bool:
    """Return whether a folder or hub name is that of a thinking model; a GGUF file never is.

    Raises:
        CheckpointError: a folder's config.json cannot be read.
    """
    if find_source(name).gguf_file:
        return False
    with loading(name) if Path(name, "config.json").is_file() else suppress(Exception):
        fields, _ = PreTrainedConfig.get_config_dict(str(name))
        return fields.get("model_type") == QuietStarConfig.model_type
    return False  # loading it will say what is wrong


def load_tokenizer(name: str | Path, **kwargs: Any) -> Tokenizer | None:
    """Load the tokenizer of a hub name, folder or GGUF file; return None if there is no readable one.

    Raises:
        CheckpointError: a GGUF file is damaged, or its tokenizer is not the one that it names.
    """
    if not str(name):
        return None
    source = find_source(name, kwargs.pop("gguf_file", None), **hub_arguments(kwargs))
    if source.gguf_file:
        return gguf_tokenizer(source, **kwargs)
    try:
        return AutoTokenizer.from_pretrained(str(name), **{"trust_remote_code": False, **kwargs})
    except Exception:  # the tokenizers library raises nothing more specific
        return None


def need_tokenizer(name: str, **kwargs: Any) -> Tokenizer:
    """Return a model's tokenizer, as `load_tokenizer` does.

    Raises:
        CheckpointError: it has none, or there is no such model.
    """
    tokenizer = load_tokenizer(name, **kwargs)
    if tokenizer is not None:
        return tokenizer
    if Path(name).exists():
        raise CheckpointError(
            f"no tokenizer could be loaded from {name!r}: give a folder with tokenizer files beside the model"
        )
    raise CheckpointError(
        f"there is no model {name!r} here, nor on a hub that can be reached; "
        + (
            near(name, SHORT_NAMES)
            or f"give a folder, a GGUF file, a name on the hub, or {', '.join(SHORT_NAMES)}, which needs no hub"
        )
    )


def save_tokenizer(tokenizer: Tokenizer | None, source: str, target: Path) -> None:
    """Save a model's tokenizer beside a copy of the model; warn if there is none."""
    if tokenizer is None:
        logger.warning(
            "%s has no tokenizer that can be read, so %s has none; save the model's own there", source, target
        )
    else:
        tokenizer.save_pretrained(target)
