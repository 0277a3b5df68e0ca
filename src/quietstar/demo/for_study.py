"""What `quietstar study` needs to compare arms on a demo's language: the model before it learned to think, and text."""

import random
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from quietstar.model import QuietStarForCausalLM
from quietstar.runs.folders import write_whole

FRESH = "fresh"
"""folder of that model"""


def write_for_study(
    folder: Path,
    fresh: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    lessons: list[str],
    held_out: list[str],
) -> None:
    """Write the model, the lines that it would learn from, and held-out lines in two halves, to select and to test.

    Beside each file of lines lies one with all of its characters shuffled over the lines, in which there is nothing to
    think about: noise-train.txt, for instance.
    """
    fresh.save_pretrained(folder / FRESH)
    tokenizer.save_pretrained(folder / FRESH)
    half = len(held_out) // 2
    for name, lines in (("train", lessons), ("selection", held_out[:half]), ("test", held_out[half:])):
        write_whole(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))
        write_whole(folder / f"noise-{name}.txt", "".join(f"{line}\n" for line in shuffled(lines, name)))


def shuffled(lines: list[str], seed: str) -> list[str]:
    """Return lines of the same lengths, with all characters in another order."""
    characters = list("".join(lines))
    random.Random(seed).shuffle(characters)
    source = iter(characters)
    return ["".join(next(source) for _ in line) for line in lines]
