"""The language: walks are right, held-out problems are held out, and the tokenizer round-trips text."""

import random
from itertools import pairwise

import pytest
from transformers import AutoTokenizer

from quietstar.demo.language import (
    END,
    LETTERS,
    MOVES,
    N_MOVES,
    Language,
    Lines,
    build_tokenizer,
    every_problem,
    question,
    split_problems,
)

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_moves_permute_the_letters(seed):
    language = Language.sample(seed)
    assert set(language.moves) == set(MOVES)
    for move in language.moves.values():
        assert sorted(move) == sorted(move.values()) == list(LETTERS)


def test_moves_are_the_same_for_a_seed_and_others_for_another():
    drawn = [Language.sample(seed) for seed in SEEDS]
    assert drawn == [Language.sample(seed) for seed in SEEDS]
    assert all(a != b for a, b in pairwise(drawn))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_spelled_line_walks_step_by_step_from_its_start_to_its_answer(seed):
    language = Language.sample(seed)
    for problem in random.Random(seed).sample(every_problem(), 100):
        asked, way, answer = language.line(problem, spelled=True).split("~")
        assert asked == question(problem)
        stops = problem[0] + way + answer
        assert len(stops) == 1 + N_MOVES
        for here, move, there in zip(stops, problem[1:], stops[1:], strict=False):
            assert language.moves[move][here] == there
        assert language.line(problem, spelled=False) == asked + answer


@pytest.mark.parametrize("held_out_share", [0.01, 0.2, 0.9])
def test_each_problem_is_either_held_out_or_trained_on(held_out_share):
    training, held_out = split_problems(0, held_out_share)
    assert len(held_out) == round(held_out_share * 12 * 3**5)
    assert sorted(training + held_out) == sorted(every_problem())
    assert len(set(training) | set(held_out)) == len(training) + len(held_out)


def test_split_is_the_same_for_a_seed_and_another_for_another():
    assert split_problems(3, 0.2) == split_problems(3, 0.2)
    assert split_problems(3, 0.2) != split_problems(4, 0.2)


def test_tokenizer_has_a_token_for_each_character_and_gives_the_text_back(tmp_path):
    built = build_tokenizer()
    built.save_pretrained(tmp_path)
    line = Language.sample(0).line(every_problem()[777], spelled=True) + END
    for tokenizer in (built, AutoTokenizer.from_pretrained(tmp_path)):
        ids = tokenizer(line)["input_ids"]
        assert len(ids) == len(line)
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.pad_token_id not in ids
        assert tokenizer.decode(ids) == line


def test_lines_end():
    tokenizer = build_tokenizer()
    lines = Lines(["cxz=a", "b=c"], tokenizer)
    assert [tokenizer.decode(lines[i]["input_ids"]) for i in range(len(lines))] == ["cxz=a\n", "b=c\n"]
