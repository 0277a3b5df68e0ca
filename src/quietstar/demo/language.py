"""The demo's language: walks over twelve letters, in which each move is a permutation of the letters.

A line is a start letter, moves and the letter where the walk ends, `cxzyyx=h`; or the same with its way, the stops
between start and end, spelled out between dashes: `cxzyyx=~aekd~h`. By default there are three kinds of moves, and a
walk has five.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

LETTERS = "abcdefghijkl"
MOVES = "xyz"
N_MOVES = 5
EQUALS = "="
DASH = "~"
END = "\n"
"""the end of a line"""
PADDING = "<pad>"
N_STOPS = N_MOVES - 1
"""number of letters in a way"""
CHANCE = 1 / len(LETTERS)
"""accuracy of guessing"""


@dataclass(frozen=True)
class Language:
    """Where each move leads: move -> letter -> the letter after that move."""

    moves: Mapping[str, Mapping[str, str]]

    @classmethod
    def sample(cls, seed: int, moves: str = MOVES) -> "Language":
        """Return a language with random permutations, determined by the seed."""
        source = random.Random(f"moves {seed}")
        return cls({move: dict(zip(LETTERS, source.sample(LETTERS, len(LETTERS)), strict=True)) for move in moves})

    def walk(self, problem: str) -> str:
        """`cxzyyx` -> `aekdh`: the letter after each move."""
        letter, stops = problem[0], ""
        for move in problem[1:]:
            letter = self.moves[move][letter]
            stops += letter
        return stops

    def way(self, problem: str) -> str:
        """`cxzyyx` -> `aekd`: the stops between start and end."""
        return self.walk(problem)[:-1]

    def answer(self, problem: str) -> str:
        """`cxzyyx` -> `h`: where the walk ends."""
        return self.walk(problem)[-1]

    def line(self, problem: str, *, spelled: bool) -> str:
        """`cxzyyx` -> `cxzyyx=~aekd~h` where spelled, `cxzyyx=h` where not."""
        way = f"{DASH}{self.way(problem)}{DASH}" if spelled else ""
        return question(problem) + way + self.answer(problem)


def question(problem: str) -> str:
    """`cxzyyx` -> `cxzyyx=`"""
    return problem + EQUALS


def every_problem(moves: str = MOVES, n_moves: int = N_MOVES) -> list[str]:
    """Return all combinations of a start letter and that many moves."""
    return ["".join(problem) for problem in product(LETTERS, *[moves] * n_moves)]


def split_problems(
    seed: int, held_out_share: float, moves: str = MOVES, n_moves: int = N_MOVES
) -> tuple[list[str], list[str]]:
    """Shuffle all problems and split them into training and held-out problems."""
    problems = every_problem(moves, n_moves)
    random.Random(f"split {seed}").shuffle(problems)
    n_held_out = round(held_out_share * len(problems))
    return problems[n_held_out:], problems[:n_held_out]


def build_tokenizer(moves: str = MOVES) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character; its eos token is the end of a line."""
    characters = [PADDING, END, *LETTERS, *moves, EQUALS, DASH]
    tokenizer = Tokenizer(WordLevel({character: i for i, character in enumerate(characters)}, unk_token=PADDING))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


class Lines:
    """A dataset of tokenized lines, each with the end of a line."""

    def __init__(self, lines: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
        self.rows = tokenizer([line + END for line in lines])["input_ids"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[index]}
