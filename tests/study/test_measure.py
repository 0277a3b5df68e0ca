"""What is measured of a model, beside plain computations."""

from pathlib import Path

import pytest
import torch

from quietstar.errors import CheckpointError
from quietstar.study.measure import Measured, measure_predictions, sharpest
from quietstar.study.recipe import Recipe
from quietstar.study.texts import Texts
from tests.study.test_comparison import recipe_of
from tests.tiny import tiny_base, tiny_model

ROWS = [[5, 9, 31, 7, 12], [8, 3, 44], [17, 20, 6, 33, 40, 2, 11]]


def measured(model: object, **how: float) -> Measured:
    record = Measured(arm="quietstar", seed=0, nll=[], **how)
    recipe: Recipe = recipe_of("base", "quietstar")
    measure_predictions(record, model, Texts(selection=ROWS, test=ROWS), recipe, with_entropy=True)
    return record


def plain_nll(model: object, sharpness: float = 1.0) -> list[list[float]]:
    found = []
    for ids in ROWS:
        logits = model(torch.tensor([ids])).logits[0, :-1].float() * sharpness
        found.append((-logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]).tolist())
    return found


@torch.no_grad()
def test_every_token_of_every_row_is_scored_with_thoughts_and_without() -> None:
    model = tiny_model(n_ahead=4)
    record = measured(model)
    for found, expected in ((record.nll, plain_nll(model)), (record.base_nll, plain_nll(model.base_lm))):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert record.nll != record.base_nll
    assert record.passes_a_token == 3


@torch.no_grad()
def test_a_sharpened_model_is_another_temperature() -> None:
    base_lm = tiny_base()
    for ours, theirs in zip(measured(base_lm, sharpness=0.6).nll, plain_nll(base_lm, 0.6), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@torch.no_grad()
def test_the_temperature_that_is_chosen_is_the_best_of_all() -> None:
    base_lm = tiny_base()

    def nll(sharpness: float) -> float:
        rows = plain_nll(base_lm, sharpness)
        return sum(map(sum, rows)) / sum(map(len, rows))

    found = sharpest(base_lm, ROWS, batch_size=2)
    assert nll(found) <= min(nll(each / 50) for each in range(13, 200)) + 1e-4
    assert nll(found) < nll(1.0) - 0.1, "these models are far too sure"


def test_records_survive_their_file(tmp_path: Path) -> None:
    record = Measured(arm="filler", seed=3, nll=[[0.1, 0.25], [1e-9]], curve=[[0, 2.5]], tasks={"gsm8k": {"x": [1.0]}})
    record.write(tmp_path / "measured.json")
    assert Measured.read(tmp_path / "measured.json") == record


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"arm": "x", "seed": 1, "nll": [], "more": 1}', "\0"])
def test_other_files_are_no_records(text: str, tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not a study's record of a run; delete it"):
        Measured.read(tmp_path / "measured.json")
