"""Load and save checkpoints of the released code (a patched Mistral).

Its files hold the base model under its usual names, the mixing head as `talk_head.0.{0,2,4}.*`, and
`start_embedding` and `end_embedding` [2, D], of which row 0 is the stored vector and row 1 is unused. Its last two
vocabulary rows stand for start and end of a thought; we keep them, as they are part of the weights, and suppress them.
"""

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MistralConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from quietstar.attention import attention_backend
from quietstar.base.checks import best_backend
from quietstar.base.loading import load_base, load_tokenizer
from quietstar.base.sources import HUB_ARGUMENTS
from quietstar.base.ties import is_tied
from quietstar.base.untrusted import check_fields, loading, read_index
from quietstar.config import QuietStarConfig
from quietstar.errors import CheckpointError, UnsupportedModelError, first_line, shown
from quietstar.model import QuietStarForCausalLM
from quietstar.runs.folders import write_whole

THOUGHT_TOKENS = ("<|startthought|>", "<|endthought|>")
LAYOUT = {
    "merged_talk_heads": True,
    "merged_lm_and_talk_heads": False,
    "merged_lm_and_think_heads": True,
    "use_concat_talk_head": True,
    "use_shallow_think": True,
    "use_shallow_talk": False,
    "use_complex_think_head": False,
    "use_complex_talk_head": True,
    "use_weighted_talk_head": True,
}
"""the released code's config fields, at the values of the paper's models; other values mean other heads"""

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")


def load_original(cls: type[QuietStarForCausalLM], path: str | Path, **settings: Any) -> QuietStarForCausalLM:
    """Load a checkpoint of the released code as a thinking model.

    Args:
        cls: class of the model.
        path: folder or hub name, with sharded or single safetensors or .bin files (read weights-only).
        settings: fields of QuietStarConfig; the rest goes to `from_pretrained` of the base model. The checkpoint
            does not say its `n_ahead`. Ours counts start and end, as the released code's inference does; what its
            training calls N is N - 1 here.

    Raises:
        CheckpointError: there is no such checkpoint, or its heads are not the paper's.
    """
    own = {name: settings.pop(name) for name in QuietStarConfig.__annotations__.keys() & settings.keys()}
    QuietStarConfig(**own)
    with loading(path):
        return _load(cls, str(path), own, settings)


def _load(
    cls: type[QuietStarForCausalLM], path: str, own: dict[str, Any], settings: dict[str, Any]
) -> QuietStarForCausalLM:
    hub: dict[str, Any] = {name: settings[name] for name in HUB_ARGUMENTS & settings.keys()}
    fields = json.loads(_file(path, "config.json", hub).read_bytes())
    check_fields(fields, "config.json")
    if fields.get("model_type", "mistral") != "mistral":
        raise CheckpointError(
            f"{path} is a {shown(fields['model_type'])}; the released code's checkpoints are of model_type mistral"
        )
    strange = {name: fields[name] for name, value in LAYOUT.items() if fields.get(name, value) != value}
    if strange:
        raise CheckpointError(
            f"{path} has {shown(strange)}; only the paper's heads can be loaded: { ({n: LAYOUT[n] for n in strange}) }"
        )
    base_fields = {n: v for n, v in fields.items() if n not in LAYOUT and n not in _NOT_OF_THE_BASE}
    base_config = MistralConfig(**base_fields)
    base_config.architectures = ["MistralForCausalLM"]
    base_config.max_thoughts = fields.get("max_thoughts", 0)  # marks a vocabulary whose last two rows are theirs
    heads = read_tensors(path, re.compile(r"talk_head\.|(start|end)_embedding$"), hub)

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would list our heads as unexpected
    try:
        base_lm = load_base(path, config=base_config, **settings)
    finally:
        transformers_logging.set_verbosity(verbosity)
    backend = best_backend(base_lm)

    if "suppressed_token_ids" not in own:
        own["suppressed_token_ids"] = thought_rows(load_tokenizer(path), base_config.vocab_size)
    model = cls(QuietStarConfig(base_config=base_config, **own), base_lm)
    model.attention = attention_backend(backend, base_lm)
    model.mixing_head.to(base_lm.device)
    model.thought_embeddings.to(base_lm.device)
    rescale = 100.0 / model.config.embedding_scale  # their parameter is a hundredth of what is fed
    with torch.no_grad():
        for name, parameter in _heads(model).items():
            if name not in heads:
                raise CheckpointError(
                    f"{path} has no {name}: it is not a checkpoint of the released code; from_base gives thoughts "
                    "to a plain model"
                )
            value = heads[name][0] * rescale if name.endswith("_embedding") else heads[name]
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"{path} has {name} {list(heads[name].shape)}; only the paper's mixing head, "
                    f"{list(parameter.shape)}, can be loaded"
                )
            parameter.copy_(value)
    model.generation_config = base_lm.generation_config
    return model.eval()


def save_original(
    model: QuietStarForCausalLM, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write a checkpoint that the released code reads: config.json and safetensors under its names.

    A tokenizer is saved with it, with the released code's two tokens added. A model without the two vocabulary rows
    gets them, embedded as start and end are, because the released code needs them.

    Raises:
        UnsupportedModelError: the base model is not a Mistral, or has adapters that are not merged.
        CheckpointError: the folder is not empty.
    """
    path, config = Path(path), model.config
    if config.base_config.model_type != "mistral":
        raise UnsupportedModelError(
            f"the released code is a patched Mistral and cannot hold a {config.base_config.model_type}; "
            "use save_pretrained"
        )
    if config.branch_adapters is not None:
        raise UnsupportedModelError("the released code has no adapters that act in branches alone; use save_pretrained")
    if config.mixing != "head":
        raise UnsupportedModelError(
            f"the released code always has a mixing head (mixing is {config.mixing}); use save_pretrained"
        )
    if config.learn_to_end:
        raise UnsupportedModelError("the released code's thoughts do not end early (learn_to_end); use save_pretrained")
    if config.lora is not None:
        raise UnsupportedModelError("the released code has no adapters; call merge_lora() first")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} is not empty; give an empty folder, or one that does not exist yet")

    state = {name: tensor.detach().cpu() for name, tensor in model.base_lm.state_dict().items()}
    fields = config.base_config.to_dict()
    fields |= LAYOUT | {"max_thoughts": (config.n_ahead + 1) + config.n_ahead_talk + 1}
    fields["architectures"] = ["MistralForCausalLM"]
    tied = is_tied(model.base_lm)
    rescale = config.embedding_scale / 100.0
    for name, parameter in _heads(model).items():
        value = parameter.detach().cpu()
        if name.endswith("_embedding"):
            value = torch.stack([value * rescale, torch.zeros_like(value)])
        state[name] = value.to(model.base_lm.dtype)
    if tokenizer is not None:
        tokenizer = copy.deepcopy(tokenizer)
        added = {"additional_special_tokens": list(THOUGHT_TOKENS)}
        tokenizer.add_special_tokens(added, replace_extra_special_tokens=False)
    if not hasattr(config.base_config, "max_thoughts"):
        vocab_size = config.vocab_size
        ids = [vocab_size, vocab_size + 1] if tokenizer is None else tokenizer.convert_tokens_to_ids(THOUGHT_TOKENS)
        rows = 100.0 * torch.stack([state["start_embedding"][0], state["end_embedding"][0]])
        for name, values in (("model.embed_tokens.weight", rows), ("lm_head.weight", torch.zeros_like(rows))):
            if name in state:
                state[name] = with_rows(state[name], ids, values)
                fields["vocab_size"] = len(state[name])
        tied = False
    fields["tie_word_embeddings"] = tied
    if tied:
        del state["lm_head.weight"]
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / "config.json", json.dumps(_plain(fields), indent=2) + "\n")
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, str(path))
    if tokenizer is not None:
        tokenizer.save_pretrained(path)


def with_rows(table: Tensor, ids: list[int], rows: Tensor) -> Tensor:
    """Return table [V, D] with rows [n, D] at these ids, padded with zero rows if it is too short."""
    table = torch.nn.functional.pad(table, (0, 0, 0, max(0, max(ids) + 1 - len(table))))
    return table.index_copy(0, torch.tensor(ids), rows.to(table.dtype))


def thought_rows(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> list[int]:
    """Return the vocabulary rows of start and end of a thought: the tokenizer's, or else the last two."""
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    ids = [vocabulary[token] for token in THOUGHT_TOKENS if token in vocabulary]
    return ids if len(ids) == 2 else [vocab_size - 2, vocab_size - 1]


def read_tensors(path: str, wanted: re.Pattern, hub: dict[str, Any]) -> dict[str, Tensor]:
    """Load the tensors whose names match, from a folder or hub name; files without any are not opened."""
    for index in INDEXES:
        if (listed := _find(path, index, hub)) is not None:
            files = sorted({file for name, file in read_index(listed).items() if wanted.search(name)})
            return _read([_file(path, file, hub) for file in files], wanted)
    for single in SINGLES:
        if (file := _find(path, single, hub)) is not None:
            return _read([file], wanted)
    raise CheckpointError(f"{path} has no weights; one of {', '.join(SINGLES + INDEXES)} is needed")


def _read(files: Iterable[Path], wanted: re.Pattern) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with loading(file), safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys() if wanted.search(name)}  # noqa: SIM118
        else:
            with loading(file):
                state = torch.load(file, map_location="cpu", weights_only=True)
            tensors |= {name: tensor for name, tensor in state.items() if wanted.search(name)}
    return tensors


def _file(path: str, name: str, hub: dict[str, Any]) -> Path:
    found = _find(path, name, hub)
    if found is None:
        raise CheckpointError(f"{path} has no {name}: give a folder or the name of a complete checkpoint")
    return found


def _find(path: str, name: str, hub: dict[str, Any]) -> Path | None:
    try:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint {path!r}: give a folder, or a name on a hub that can be reached ({first_line(error)})"
        ) from error
    return None if found is None else Path(found)


def _heads(model: QuietStarForCausalLM) -> dict[str, nn.Parameter]:
    """Return the parameters that Quiet-STaR adds, by their names in the released code."""
    mixing = {name.replace("layers.", "talk_head.0."): p for name, p in model.mixing_head.named_parameters()}
    return mixing | dict(model.thought_embeddings.named_parameters())


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return config fields as the older transformers of the released code expects them."""
    rope = fields.pop("rope_parameters", None) or {}
    fields.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    fields["torch_dtype"] = str(fields.pop("dtype", None) or "float32").removeprefix("torch.")
    return {name: value for name, value in fields.items() if not name.startswith("_")}


_NOT_OF_THE_BASE = {"max_thoughts", "architectures", "model_type", "auto_map", "transformers_version"}
