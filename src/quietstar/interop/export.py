"""`quietstar export` without its command line: plain models as GGUF files or folders, for other engines."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from quietstar.base.loading import holds_thinking_model, load_base, load_tokenizer, save_tokenizer
from quietstar.base.origin import origin_of
from quietstar.base.sources import SUFFIX
from quietstar.errors import CheckpointError, SettingsError, first_line, shown
from quietstar.interop.gguf.write import TYPES, check_range, write_gguf
from quietstar.runs.folders import check_new

logger = logging.getLogger(__name__)

FORMATS = ("gguf", "plain")
AUTO = "auto"


def export(source: str, target: str | Path, *, to: str, dtype: str = AUTO) -> None:
    """Write a plain model in a format that other engines load.

    Args:
        source: folder, hub name or GGUF file of a model that does not think.
        target: for "gguf" a new file that ends in .gguf, for "plain" a new or empty folder.
        to: "gguf" for llama.cpp, or "plain" for transformers and engines that read its folders.
        dtype: of matrices: auto, the default (as they are; of a GGUF file float32), float32, float16, bfloat16, and for
            "gguf" q8_0.

    Raises:
        CheckpointError: the source is a thinking model, lacks weights or has no tokenizer; the target exists, or cannot
            be written.
        SettingsError: a setting is none of those above.
        UnsupportedModelError: llama.cpp does not compute what the model computes.
    """
    target = Path(target)
    if to not in FORMATS:
        raise SettingsError(f"to is {shown(to)}; give {' or '.join(FORMATS)}")
    allowed = [name for name in (AUTO, *TYPES) if to == "gguf" or name != "q8_0"]
    if dtype not in allowed:
        raise SettingsError(f"dtype is {shown(dtype)}; for {to} give one of {', '.join(allowed)}")
    try:
        _check_target(target, to)
        if holds_thinking_model(source):
            raise CheckpointError(
                f"{source} is a thinking model, which other engines cannot run; teach a plain model what it predicts "
                f"(quietstar distill {source} ...), and export that"
            )
        _write(source, load_base(source, dtype=AUTO), target, to, dtype)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target} cannot be written ({first_line(error)}); give another target") from error


def _write(source: str, model: PreTrainedModel, target: Path, to: str, dtype: str) -> None:
    tokenizer = load_tokenizer(source)
    if to == "plain":
        if dtype != AUTO:
            check_range(model.named_parameters(), dtype)
            model.to(getattr(torch, dtype))
        model.save_pretrained(target)
        save_tokenizer(tokenizer, source, target)
        return
    if tokenizer is None:
        raise CheckpointError(f"{source} has no tokenizer, which a GGUF file needs; save one next to the model")
    own = str(model.dtype).removeprefix("torch.")
    if dtype == AUTO:
        dtype = own if own in TYPES else "float32"
    name, origin = Path(source).resolve().name.removesuffix(SUFFIX), origin_of(source)
    licence = origin.license_name or origin.license
    write_gguf(model, tokenizer, target, dtype=dtype, name=name, license=licence)
    _warn_of_other_tokens(tokenizer, target)


def _check_target(target: Path, to: str) -> None:
    """Raise CheckpointError if the target cannot be written."""
    if to == "gguf":
        if target.suffix != SUFFIX:
            raise CheckpointError(f"{target} does not end in {SUFFIX}; give a file that does")
        if target.exists():
            raise CheckpointError(f"{target} exists; give a new file")
        if not target.absolute().parent.is_dir():
            raise CheckpointError(f"the folder of {target} does not exist; create it, or give another file")
    else:
        check_new(target)


def _warn_of_other_tokens(tokenizer: Tokenizer, file: Path) -> None:
    """Read the tokenizer back, and warn if the text of a token becomes other tokens than before."""
    texts = tokenizer.batch_decode([[id] for id in range(len(tokenizer))])
    with tempfile.TemporaryDirectory() as folder:  # Next to other files, transformers would read those, too.
        link = Path(folder, file.name)
        link.symlink_to(file.resolve())
        tokenizers: list[Any] = [tokenizer, load_tokenizer(link)]
    before, after = (each(texts, add_special_tokens=False)["input_ids"] for each in tokenizers)
    others = [text for text, old, new in zip(texts, before, after, strict=True) if old != new]
    if others:
        logger.warning(
            "%s: %s of the %s tokens' texts become other tokens when transformers reads the file, first %s; llama.cpp "
            "may differ from the model's own tokenizer there, too",
            file,
            f"{len(others):,}",
            f"{len(texts):,}",
            shown(others[0]),
        )
