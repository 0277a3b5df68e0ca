"""The texts of a study are apart, and what training shows of the test text is told."""

import logging
from pathlib import Path

import pytest

from quietstar.base.loading import load_tokenizer
from quietstar.errors import DataError
from quietstar.study.texts import COPIED, n_copied, read_texts
from quietstar.training.data.arguments import DataArguments
from tests.study.tiny_study import tiny_recipe


def test_rows_with_copied_tokens_are_counted() -> None:
    train = [list(range(100, 140)), list(range(5))]
    just, too_short = list(range(110, 110 + COPIED)), list(range(110, 110 + COPIED - 1))
    apart = [token for at in range(100, 130) for token in (at, 7)]
    assert n_copied([[1, 2, *just, 3], [1, 2, *too_short, 3], apart, [1, 2]], train) == 1
    assert n_copied([just, just], train) == 2
    assert n_copied([just], []) == 0


def test_a_test_text_that_training_shows_in_part_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path)
    tokenizer = load_tokenizer(recipe.model)
    assert tokenizer is not None
    data = DataArguments(dataset=recipe.dataset, eval_dataset=recipe.selection, max_length=200)
    with caplog.at_level(logging.WARNING, "quietstar"):
        read_texts(recipe, data, tokenizer)
        assert caplog.text == ""
        copied = "and then the same words follow once more, as they were taught before"
        for name in ("train", "test"):
            with (tmp_path / f"{name}.txt").open("a") as file:
                file.write(f"{name}: {copied}\n")
        texts = read_texts(recipe, data, tokenizer)
    assert len(texts.test) == recipe.test_rows
    assert caplog.text == "", "that row is not among those that are tested"
    with caplog.at_level(logging.WARNING, "quietstar"):
        read_texts(tiny_recipe(tmp_path, test_rows=50), data, tokenizer)
    assert f"1 of 7 rows of {recipe.test} have 25 tokens in a row in common with {recipe.dataset}" in caplog.text


def test_a_task_that_cannot_be_loaded_is_to_be_given_in_the_recipe(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tasks={"gsm8k": None})
    tokenizer = load_tokenizer(recipe.model)
    assert tokenizer is not None
    data = DataArguments(dataset=recipe.dataset, eval_dataset=recipe.selection, max_length=200)
    with pytest.raises(DataError, match=r"give a local file instead: tasks: \{gsm8k: FILE\} in the recipe$"):
        read_texts(recipe, data, tokenizer)
