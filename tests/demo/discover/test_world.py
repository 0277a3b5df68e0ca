"""The language of --discover: lines are right, scratch letters are rare, and its three kinds of problems apart."""

import pytest

from quietstar.demo.discover.world import MOVES, N_MOVES, World
from quietstar.demo.language import DASH, EQUALS, LETTERS


@pytest.mark.parametrize("seed", range(3))
def test_each_problem_is_known_or_fresh_or_held_out(seed):
    world = World.sample(seed, 0.2)
    problems = world.known + world.fresh + world.held_out
    assert len(problems) == len(set(problems)) == len(LETTERS) * len(MOVES) ** N_MOVES
    assert world == World.sample(seed, 0.2) != World.sample(seed + 1, 0.2)


@pytest.mark.parametrize("spelled_one_in", [3, 4, 50, 101])
def test_one_line_in_so_many_spells_its_scratch_letter(spelled_one_in):
    world = World.sample(0, 0.9)
    lines = world.corpus(spelled_one_in, 0)
    assert len(lines) == spelled_one_in * len(world.known)
    spelled = [line for line in lines if DASH in line]
    assert len(spelled) == len(world.known)
    assert sum(line.index(EQUALS) == 2 for line in lines) == spelled_one_in // 2 * len(world.known)


def test_lines_walk_and_pretraining_has_known_problems_alone():
    world = World.sample(0, 0.2)
    for line in world.corpus(10, 0):
        problem, _, rest = line.partition(EQUALS)
        stops = rest.replace(DASH, "")
        here = problem[0]
        walked = [here := world.language.moves[move][here] for move in problem[1:]]
        assert stops == ("".join(walked) if DASH in rest else walked[-1])
        assert len(problem) == 2 or problem in world.known


def test_lessons_are_fresh_and_unspelled():
    world = World.sample(0, 0.2)
    assert [line.split(EQUALS)[0] for line in world.lessons()] == world.fresh
    assert not any(DASH in line for line in world.lessons())
