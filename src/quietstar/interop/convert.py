"""`quietstar convert` without its command line: between the released code's checkpoints and ours, and out of GGUF."""

from pathlib import Path
from typing import Any

from quietstar.base.loading import holds_thinking_model, load_base, load_tokenizer
from quietstar.base.sources import find_source
from quietstar.errors import CheckpointError
from quietstar.interop.shards import consolidate, is_sharded_checkpoint
from quietstar.model import QuietStarForCausalLM


def convert(source: str, target: str | Path, **settings: Any) -> str:
    """Read one kind of checkpoint and write the other; put one of shards together; unpack a GGUF file.

    Args:
        source: folder or hub name of a thinking model of ours, a checkpoint of shards, or one of the released code; or
            a GGUF file, as `find_source` takes it.
        target: folder, empty or not there yet.
        settings: for a checkpoint of the released code, what it does not say itself (n_ahead, ...).

    Returns:
        What was written: "original", "quietstar", or "plain" for a model that does not think.

    Raises:
        CheckpointError: the target holds something, or the source is neither.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} holds something already; give a folder that is empty or not there yet")
    tokenizer = load_tokenizer(source)
    sharded = is_sharded_checkpoint(Path(source))
    if is_gguf := find_source(source).gguf_file is not None:
        if settings:
            raise CheckpointError(f"{source} is a plain model; leave {', '.join(sorted(settings))} out")
        load_base(source).save_pretrained(target)
    elif sharded or holds_thinking_model(source):
        if settings:
            raise CheckpointError(f"{source} says its own settings; leave {', '.join(sorted(settings))} out")
        if not sharded:
            model = QuietStarForCausalLM.from_pretrained(source)
            model.merge_lora()
            model.save_original(target, tokenizer)
            return "original"
        target.mkdir(parents=True, exist_ok=True)
        consolidate(Path(source), target)
    else:
        QuietStarForCausalLM.from_original(source, **settings).save_pretrained(target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    return "plain" if is_gguf else "quietstar"
