"""The language of `--discover`: walks of two moves, which need one scratch letter, hardly ever spelled out.

`cxy=h` is a walk from c. Its scratch letter is e, where the first move leads: `cxy=~e~h`.
"""

import random
from dataclasses import dataclass

from quietstar.demo.language import EQUALS, LETTERS, Language, split_problems

MOVES = "qrstuvwxyz"
N_MOVES = 2
N_AHEAD = 3
"""tokens of a thought: start, the place for the scratch letter, end"""


@dataclass(frozen=True)
class World:
    """A language, and its problems in three parts that share none."""

    language: Language
    known: list[str]
    """those whose answers pretraining teaches; the model soon knows them by heart, and no thought can help"""
    fresh: list[str]
    """those of the lines that the model learns to think from"""
    held_out: list[str]
    """those that it is asked about"""

    @classmethod
    def sample(cls, seed: int, held_out_share: float) -> "World":
        """Return a language and a split of its problems, determined by the seed; a third of the rest is known."""
        problems, held_out = split_problems(seed, held_out_share, MOVES, N_MOVES)
        n_known = len(problems) // 3
        return cls(Language.sample(seed, MOVES), problems[:n_known], problems[n_known:], held_out)

    def corpus(self, spelled_one_in: int, seed: int) -> list[str]:
        """Return the lines of pretraining, `spelled_one_in` for each known problem.

        Half of them have one move, `cx=e`. The others have the problem's two moves, and one of these is spelled out.
        """
        steps = [letter + move for letter in LETTERS for move in MOVES]
        n_short = spelled_one_in // 2
        source = random.Random(f"short lines {seed}")
        lines = []
        for problem in self.known:
            lines += [step + EQUALS + self.language.answer(step) for step in source.choices(steps, k=n_short)]
            lines += [self.language.line(problem, spelled=i == 0) for i in range(spelled_one_in - n_short)]
        return lines

    def lessons(self) -> list[str]:
        """Return the lines that the model learns to think from, none of them spelled out."""
        return [self.language.line(problem, spelled=False) for problem in self.fresh]
