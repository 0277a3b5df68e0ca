"""The texts of a study: rows of tokens that every arm is measured on, apart from those that it trains on."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from quietstar.errors import SettingsError
from quietstar.evaluation.direct import alphabet_of, encode
from quietstar.evaluation.scoring import Continuation
from quietstar.evaluation.tasks import find_task, load_items
from quietstar.study.recipe import Recipe
from quietstar.training.data.arguments import DataArguments
from quietstar.training.data.datasets import build_datasets

logger = logging.getLogger(__name__)

COPIED = 25
"""tokens in a row that two texts hardly share by chance; sums such as "5 * 2 = <<5*2=10>>10" have up to 20"""


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows of tokens that every arm is measured on."""

    selection: list[list[int]]
    test: list[list[int]]
    tasks: dict[str, list[Continuation]] = field(default_factory=dict)
    """task -> its questions and answers"""


def read_texts(recipe: Recipe, data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Return the rows of both held-out texts, and the items of tasks; warn of test rows that training shows in part.

    Raises:
        DataError: a text or a task cannot be read.
        SettingsError: a held-out text has fewer than two rows, or shares one with another text.
    """
    rows: dict[str, list[list[int]]] = {}
    for name in (recipe.selection, recipe.test):
        train, held_out = build_datasets(replace(data, eval_dataset=name), tokenizer, seed=0)
        assert held_out is not None
        rows[name] = rows_of(held_out)
        if len(rows[name]) < 2:
            raise SettingsError(f"{name} has {len(rows[name])} rows, and an interval needs at least two")
    rows[recipe.dataset] = rows_of(train)
    for first, second in combinations((recipe.dataset, recipe.selection, recipe.test), 2):
        others = set(map(tuple, rows[first]))
        if n := sum(tuple(row) in others for row in rows[second]):
            raise SettingsError(
                f"{n} rows of {second} are rows of {first}, too, and a study needs texts that share nothing; give "
                "another text"
            )
    test = rows[recipe.test][: recipe.test_rows]
    if n := n_copied(test, rows[recipe.dataset]):
        logger.warning(
            "%d of %d rows of %s have %d tokens in a row in common with %s; give texts that are further apart",
            n, len(test), recipe.test, COPIED, recipe.dataset,
        )  # fmt: skip
    tasks = {}
    for name, path in recipe.tasks.items():
        task = find_task(name)
        items = load_items(task, path or None, recipe.task_items, "tasks: {{{}: FILE}} in the recipe")
        tasks[name], _ = encode(items, tokenizer, alphabet_of(task, tokenizer))
    return Texts(selection=rows[recipe.selection], test=test, tasks=tasks)


def rows_of(texts: Any) -> list[list[int]]:
    """Return the tokens of each row of a dataset."""
    return [list(texts[index]["input_ids"]) for index in range(len(texts))]


def n_copied(rows: list[list[int]], others: list[list[int]]) -> int:
    """Return how many rows have COPIED tokens in a row that are in other rows, too."""
    seen = {run for row in others for run in _runs(row)}
    return sum(any(run in seen for run in _runs(row)) for row in rows)


def _runs(row: list[int]) -> Iterator[tuple[int, ...]]:
    return (tuple(row[first : first + COPIED]) for first in range(len(row) - COPIED + 1))


def digest_of_rows(rows: list[list[int]]) -> str:
    """Return a digest of tokens."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
