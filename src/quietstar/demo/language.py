"""The demo's language: walks over twelve letters, where three kinds of moves each permute the letters.

A line is a start letter, five moves and the letter where the walk ends, `cxzyyx=h`; or the same with its way, the
stops between start and end, spelled out between dashes: `cxzyyx=~aekd~h`.
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
"""what ends a line"""
PADDING = "<pad>"
N_STOPS = N_MOVES - 1
"""letters of a way"""
CHANCE = 1 / len(LETTERS)
"""share of right answers that guessing gives"""


@dataclass(frozen=True)
class Language:
    """Where each move leads.

    Args:
        moves: for each move, a letter -> the letter after that move.
    """

    moves: Mapping[str, Mapping[str, str]]

    @classmethod
    def draw(cls, seed: int) -> "Language":
        """Three permutations, the same ones each time for the same seed."""
        source = random.Random(f"moves {seed}")
        return cls({move: dict(zip(LETTERS, source.sample(LETTERS, len(LETTERS)), strict=True)) for move in MOVES})

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


def every_problem() -> list[str]:
    """All starts with all sequences of moves."""
    return ["".join(problem) for problem in product(LETTERS, *[MOVES] * N_MOVES)]


def split_problems(seed: int, held_out_share: float) -> tuple[list[str], list[str]]:
    """All problems, shuffled and cut into those to train on and those that no training sees."""
    problems = every_problem()
    random.Random(f"split {seed}").shuffle(problems)
    n_held_out = round(held_out_share * len(problems))
    return problems[n_held_out:], problems[:n_held_out]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; the eos token is the end of a line."""
    characters = [PADDING, END, *LETTERS, *MOVES, EQUALS, DASH]
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
    """Lines as rows of tokens, each with its end.

    Args:
        lines: text.
        tokenizer: of `build_tokenizer`.
    """

    def __init__(self, lines: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
        self.rows = tokenizer([line + END for line in lines])["input_ids"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[index]}
