"""A study small enough for a test: a tiny model, a few lines of text, three arms."""

from pathlib import Path
from typing import Any

import yaml

from quietstar.cli.train import train_parser
from quietstar.study.recipe import Recipe, read_recipe
from tests.tiny_tokenizer import tiny_folder

TEXTS = {
    "train": [f"{n} and {n + 1} are {2 * n + 1}" for n in range(24)],
    "selection": [f"{n} and {n + 1} are {2 * n + 1}" for n in range(30, 34)],
    "test": [f"{n} and {n + 1} are {2 * n + 1}" for n in range(40, 46)],
}


def recipe_file(where: Path, **changed: Any) -> Path:
    """A recipe beside its model and texts."""
    if not (where / "base").is_dir():
        tiny_folder(where / "base", "llama")
        for name, lines in TEXTS.items():
            (where / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    recipe = {
        "model": str(where / "base"),
        "dataset": str(where / "train.txt"),
        "selection": str(where / "selection.txt"),
        "test": str(where / "test.txt"),
        "test_rows": 5,
        "inspected_rows": 2,
        "batch_size": 3,
        "evaluations": 2,
        "seeds": [0, 1],
        "options": {
            "max_length": 24,
            "max_steps": 2,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "use_cpu": True,
        },
        "thinking": {"n_ahead": 4, "n_ahead_talk": 2, "think_fraction": 0.5, "head_learning_rate": 1e-2},
        "arms": ["base-sharpened", "finetune-compute", "filler", "quietstar"],
    }
    file = where / "recipe.yaml"
    file.write_text(yaml.safe_dump({**recipe, **changed}, sort_keys=False))
    return file


def tiny_recipe(where: Path, **changed: Any) -> Recipe:
    """That recipe, read."""
    return read_recipe(str(recipe_file(where, **changed)), train_parser())
