"""The end of a training run: its model and its figures are written, and said."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from quietstar.base.sharding import is_sharded
from quietstar.errors import CheckpointError, first_line
from quietstar.model import QuietStarForCausalLM
from quietstar.reporting.tables import json_lines
from quietstar.runs.folders import write_whole
from quietstar.training.card import evaluation_of, write_card_of
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.trainer import QuietStarTrainer

logger = logging.getLogger(__name__)

SKIPPED = "{:,} texts too short for one prediction were skipped"


@contextmanager
def final_save(folder: Path) -> Iterator[None]:
    """Raise CheckpointError, in one line, if the model or the figures cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the trained model cannot be written to {folder} ({first_line(error)}); make room, and "
            "continue from the last checkpoint with --resume"
        ) from error


def write_figures(trainer: QuietStarTrainer, figures: dict[str, Any]) -> None:
    """Write results.json and log.jsonl into the run's folder."""
    texts: Any = trainer.train_dataset
    is_stream = isinstance(texts, StreamedTextWindows)
    figures["n_skipped_texts"] = trainer.parts.place.n_skipped if is_stream else texts.n_skipped
    if trainer.is_world_process_zero():
        write_whole(trainer.folder / "results.json", json.dumps(figures, indent=2) + "\n")
        write_whole(trainer.folder / "log.jsonl", json_lines(trainer.state.log_history))
    if is_stream:
        logger.info(SKIPPED.format(figures["n_skipped_texts"]))


def save(
    trainer: QuietStarTrainer, tokenizer: PreTrainedTokenizerBase, *, plain: bool, merge: bool, dtype: str
) -> None:
    """Write the model into the run's folder: the thinking model, or its base model if `plain`.

    With `merge`, adapters are merged into the weights, in the given dtype: most of what they add is lost in 16 bits.
    """
    model: QuietStarForCausalLM = trainer.accelerator.unwrap_model(trainer.model)
    folder = trainer.folder
    if is_sharded(model):
        trainer.save_model(_internal_call=True)  # All processes take part; the rest is one's work.
        if not (plain or merge) or not trainer.is_world_process_zero():
            return
        unset_hf_deepspeed_config()  # Otherwise the model would be sharded again.
        model = QuietStarForCausalLM.from_pretrained(folder, dtype=dtype)
        for file in folder.glob("model*.safetensors*"):
            file.unlink()
    elif getattr(model.base_lm, "is_quantized", False):
        model.base_lm.dequantize()
    if merge and model.config.lora is not None:
        model.to("cpu", getattr(torch, dtype))  # In float32 it may not fit on the GPU.
        model.merge_lora()
    if not plain and not is_sharded(trainer.model):
        trainer.save_model(_internal_call=True)
    elif trainer.is_world_process_zero():
        (model.base_lm if plain else model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_card_of(trainer, folder)


def last_evaluation(trainer: QuietStarTrainer) -> dict[str, float]:
    """Return the held-out figures of the model that is saved: of the last step, or of the best one if that is kept.

    An evaluation is run if there was none.
    """
    if trainer.eval_dataset is None:
        return {}
    found = evaluation_of(trainer)
    return trainer.evaluate() if found is None else found


def held_out_words(figures: dict[str, float]) -> list[str]:
    """Return a line for the terminal about the last figures of held-out text; none if there are no such figures."""
    if "eval_base_nll" not in figures:
        return []
    before = f"{figures['eval_nll_before']:.4f} before training, " if "eval_nll_before" in figures else ""
    if "eval_talk_nll_0" not in figures:
        return [f"held-out text, nats a token: {before}{figures['eval_base_nll']:.4f} now"]
    return [
        f"held-out text, nats a token: {before}{figures['eval_base_nll']:.4f} now without thoughts, "
        f"{figures['eval_talk_nll_0']:.4f} with them"
    ]
