"""`quietstar convert` without its command line: thinking models to and from the released code's checkpoints."""

from pathlib import Path
from typing import Any

from quietstar.base.loading import holds_thinking_model, load_tokenizer, save_tokenizer
from quietstar.base.sources import find_source
from quietstar.errors import CheckpointError
from quietstar.interop.shards import MODEL, consolidate
from quietstar.model import QuietStarForCausalLM
from quietstar.runs.folders import check_new


def convert(source: str, target: str | Path, **settings: Any) -> str:
    """Convert a checkpoint to the other format, or consolidate a sharded one.

    Args:
        source: folder or hub name of a thinking model, a sharded checkpoint, or a checkpoint of the released code.
        target: a new or empty folder.
        settings: for a checkpoint of the released code, settings that it does not contain (n_ahead, ...).

    Returns:
        The format written: "original" or "quietstar".

    Raises:
        CheckpointError: the target is not empty, or the source is not in a known format.
    """
    target = Path(target)
    check_new(target)
    if find_source(source).gguf_file is not None:
        raise CheckpointError(
            f"{source} is a plain model in a GGUF file; use quietstar export {source} FOLDER --to plain"
        )
    tokenizer = load_tokenizer(source)
    sharded = (Path(source) / MODEL).is_dir()
    if sharded or holds_thinking_model(source):
        if settings:
            raise CheckpointError(f"{source} has its own settings; leave {', '.join(sorted(settings))} out")
        if not sharded:
            model = QuietStarForCausalLM.from_pretrained(source)
            model.merge_lora()
            model.save_original(target, tokenizer)
            if tokenizer is None:
                save_tokenizer(None, source, target)
            return "original"
        target.mkdir(parents=True, exist_ok=True)
        consolidate(Path(source), target)
    else:
        QuietStarForCausalLM.from_original(source, **settings).save_pretrained(target)
    save_tokenizer(tokenizer, source, target)
    return "quietstar"
