"""Random numbers of rows: each row gets those that it would get alone."""

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.base.draws import RowGenerators, integers, uniform
from quietstar.policy import ThinkPolicy
from quietstar.serving.batch import Batch, Thinking
from tests.tiny import seeded, tiny_model

CPU = torch.device("cpu")


def generators(*seeds: int) -> RowGenerators:
    """Return a generator for each row."""
    return RowGenerators(tuple(seeded(seed) for seed in seeds))


def test_a_row_has_the_numbers_that_it_has_alone() -> None:
    """As one number or several, in any dimension, again and again."""
    rows = generators(0, 1, 2)
    for _ in range(2):
        drawn, whole = uniform((3, 5), rows, CPU), integers(9, (1, 3, 4), rows, CPU, rows=1)
        assert drawn.shape == (3, 5)
        assert whole.shape == (1, 3, 4)
    for row in range(3):
        alone = seeded(row)
        for _ in range(2):
            of_row, whole_of_row = uniform((1, 5), alone, CPU), integers(9, (1, 1, 4), alone, CPU, rows=1)
        assert torch.equal(drawn[row], of_row[0])
        assert torch.equal(whole[:, row], whole_of_row[:, 0])


def test_some_rows_take_their_generators_along() -> None:
    """In any order."""
    rows = generators(0, 1, 2)
    assert rows.of(torch.tensor([2, 0])).each == (rows.each[2], rows.each[0])


MODELS = {
    "sampled": {},
    "may end early": {"learn_to_end": True},
    "random": {"thought_source": "random"},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("think", ["always", "probability:0.5", "entropy:2"])
def test_thoughts_of_a_batch_are_those_of_each_text_alone(kind: str, think: str) -> None:
    """Though texts think at other steps, and their thoughts end at other places."""
    model, texts = tiny_model(n_ahead=7, **MODELS[kind]), [[5, 6, 7], [9, 8, 7], [5, 5, 5], [9, 6, 5]]
    together = _thoughts(model, texts, generators(0, 1, 2, 3), think)
    alone = [_thoughts(model, [text], generators(n), think)[0] for n, text in enumerate(texts)]
    assert together == alone
    assert len({str(each) for each in alone}) == 4
    swapped = _thoughts(model, texts, generators(1, 0, 2, 3), think)
    assert swapped[:2] != alone[:2]
    assert swapped[2:] == alone[2:]


def _thoughts(
    model: QuietStarForCausalLM, texts: list[list[int]], rows: RowGenerators, think: str
) -> list[list[list[int]]]:
    """Return the thoughts of each text at each of its tokens: [] where there was none."""
    batch = Batch(model, Thinking(ThinkPolicy.parse(think), 7, temperature=1.0), n_texts=len(texts))
    found: list[list[list[int]]] = [[] for _ in texts]
    for column in zip(*texts, strict=True):
        _, step = batch.read(torch.tensor(column)[:, None], rows)
        for n, (thinks, tokens) in enumerate(zip(step.thought.tolist(), step.tokens.tolist(), strict=True)):
            found[n].append(tokens if thinks else [])
    batch.close()
    return found
