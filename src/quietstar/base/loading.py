"""Load base models, and refuse one that a thought grid does not work with."""

import copy
import difflib
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
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.attention import SplitAttention, attention_backend, default_backend
from quietstar.base.gguf.model import gguf_model, gguf_tokenizer
from quietstar.base.ids import first_token
from quietstar.base.rope import check_rope
from quietstar.base.sharding import gathered, has_weights, is_partitioned
from quietstar.base.sources import SHORT_NAMES, find_source, hub_arguments
from quietstar.base.trunk import Trunk
from quietstar.base.untrusted import check_alone, check_config, check_folder, loading
from quietstar.config import QuietStarConfig
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, UnsupportedModelError, first_line
from quietstar.grid import ThoughtGrid

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
        SettingsError: the text has no token.
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
    near = difflib.get_close_matches(name, SHORT_NAMES, n=1)
    hint = f"; did you mean {near[0]}?" if near else f", or {next(iter(SHORT_NAMES))}, which needs no hub"
    raise CheckpointError(
        f"there is no model {name!r} here, nor on a hub that can be reached; give a folder, a GGUF file, a name on the "
        f"hub{hint}"
    )


def save_tokenizer(tokenizer: Tokenizer | None, source: str, target: Path) -> None:
    """Save a model's tokenizer beside a copy of the model; warn if there is none."""
    if tokenizer is None:
        logger.warning(
            "%s has no tokenizer that can be read, so %s has none; save the model's own there", source, target
        )
    else:
        tokenizer.save_pretrained(target)


def best_backend(base_lm: PreTrainedModel) -> str:
    """Return the name of the attention backend for a base model: the default one, or dense if only that is right.

    Raises:
        UnsupportedModelError: neither is right.
    """
    backend = default_backend(base_lm)
    try:
        check_base(base_lm, backend)
    except UnsupportedModelError as error:
        if backend == "dense":
            raise
        check_base(base_lm, "dense")
        backend = "dense"
        logger.warning("%s; dense masks are used instead, slower", error)
    return backend


@torch.no_grad()
def check_base(base_lm: PreTrainedModel, backend: str) -> None:
    """Compare a small thought grid with a plain loop that grows one branch at a time as an ordinary sequence.

    The grid has two rows of a few tokens, one padded on the left, and is run step by step and in one pass: a base
    model that ignores its mask, its positions or its cache differs.

    Raises:
        UnsupportedModelError: they differ, or the model does not accept what a grid needs.
        CheckpointError: the base model's own predictions are NaN.
    """
    family = base_lm.config.model_type
    cannot = f"base model family {family!r} cannot be served with {backend} attention"
    if getattr(base_lm.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{cannot}: it is an encoder-decoder; choose a decoder-only model")
    if not has_weights(base_lm) or any(is_partitioned(parameter) for parameter in base_lm.parameters()):
        return
    check_rope(base_lm)
    try:
        with evaluating(base_lm):
            differences = _grid_differences(base_lm, backend)
    except QuietStarError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{cannot}: it does not take the embeddings, positions, masks or caches that a thought grid needs "
            f"({type(error).__name__}: {first_line(error)}); choose another base model"
        ) from error
    half = base_lm.dtype in (torch.float16, torch.bfloat16)
    for what, difference in differences.items():
        if not difference <= (0.1 if half else 1e-3):
            raise UnsupportedModelError(
                f"{cannot}: {what} differs from the model's own by {difference:.1g} of its size; "
                "choose another base model"
            )


@torch.no_grad()
def check_head(base_lm: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if a model does more to its last hidden state than `Trunk.logits` does."""
    input_ids = torch.arange(1, 5, device=base_lm.get_input_embeddings().weight.device)[None]
    with evaluating(base_lm):
        trunk = Trunk(base_lm, attention_backend("dense", base_lm))
        ours = trunk.logits(base_lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state)
        own = base_lm(input_ids=input_ids, use_cache=False).logits
    if not _relative(ours, own) <= (0.1 if base_lm.dtype in (torch.float16, torch.bfloat16) else 1e-3):
        raise UnsupportedModelError(
            f"the LM head of family {base_lm.config.model_type!r} does something to its logits that is not known here; "
            "choose another model"
        )


def _grid_differences(base_lm: PreTrainedModel, backend: str) -> dict[str, float]:
    attention = attention_backend(backend, base_lm)
    if isinstance(attention, SplitAttention):
        attention.few_branches = 0  # or so few branches would not be split
    trunk = Trunk(base_lm, attention, adapts_branches=False)  # the plain loop has one set of weights for all tokens
    device = base_lm.get_input_embeddings().weight.device
    V = base_lm.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    S, L, n_padded = 5, 3, 2
    input_ids = torch.randint(V, (2, S), generator=generator).to(device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, :n_padded] = 0
    branches = trunk.embed(torch.randint(V, (L, 1, 3), generator=generator).to(device))  # [L, P, C, D]
    think_at = torch.zeros_like(input_ids)
    think_at[0, S - 3] = think_at[:, S - 1] = 1
    grid = ThoughtGrid.grow(think_at, attention_mask, n_passes=1, branch_length=L)
    embeds = trunk.embed(input_ids)

    cache = DynamicCache()
    h_base = trunk.base_pass(embeds, attention_mask, grid.base_position_ids, cache)
    grown = trunk.branch_cache(cache, grid)
    cached = torch.cat(
        [trunk.branch_pass(grid, range(step, step + 1), branches[step : step + 1], grown) for step in range(L)]
    )
    at_once = trunk.branch_pass(grid, range(L), branches, trunk.branch_cache(cache, grid))

    def plain(n: int) -> Tensor:
        row = int(grid.rows[n])
        text = embeds[row, (n_padded if row == 1 else 0) : int(grid.columns[n]) + 1]
        sequence = torch.cat([text, branches[:, 0, n]])[None]
        return base_lm.base_model(inputs_embeds=sequence).last_hidden_state[0, -L:]

    loop = torch.stack([plain(n) for n in range(grid.n_columns)], 1)[:, None]
    own_logits = base_lm(input_ids=input_ids, attention_mask=attention_mask).logits[0]
    if own_logits.isnan().any():
        raise CheckpointError(
            "the base model's own predictions are NaN: its weights are damaged, or its training diverged; load an "
            "earlier checkpoint, or train with a lower learning rate"
        )
    return {
        "a branch grown step by step": _relative(cached, loop),
        "a branch grown in one pass": _relative(at_once, loop),
        "a prediction from the last hidden state": _relative(trunk.logits(h_base)[0], own_logits),
    }


def _relative(ours: Tensor, theirs: Tensor) -> float:
    difference = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
    return float(difference)
