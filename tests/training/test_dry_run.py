"""A dry run takes one step on full rows, leaves nothing behind, and says what it took."""

import pytest
import soak

from quietstar.training import QuietStarTrainer
from quietstar.training.dry_run import DryRun
from tests.training.test_killed import inputs, train  # noqa: F401  (a fixture)


def test_one_step_on_full_rows_and_nothing_is_left(inputs, tmp_path, monkeypatch):  # noqa: F811
    seen, step = [], QuietStarTrainer.training_step

    def noted(self, model, batch, *args):
        seen.append((tuple(batch["input_ids"].shape), int(batch["attention_mask"].sum())))
        return step(self, model, batch, *args)

    monkeypatch.setattr(QuietStarTrainer, "training_step", noted)
    found = train(inputs, tmp_path / "run", dry_run=True, max_steps=300, resume=False)["dry_run"]
    assert seen == [((2, 12), 24)] * 2
    assert not (tmp_path / "run").exists()
    assert (found.n_rows, found.n_tokens, found.n_steps, found.on_gpu) == (4, 12, 300, False)
    assert 0 < found.seconds < 60
    assert found.peak > 2**26


def test_steps_of_epochs_are_counted(inputs, tmp_path):  # noqa: F811
    how = dict(dry_run=True, max_steps=-1, num_train_epochs=2, resume=False)
    assert train(inputs, tmp_path / "run", **how)["dry_run"].n_steps == 30


def test_a_run_that_is_there_stays_as_it_is(inputs, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    train(inputs, folder, max_steps=2, save_steps=2)
    before = soak.remains(folder)
    train(inputs, folder, dry_run=True)
    assert soak.differences(soak.remains(folder), before) == []


@pytest.mark.parametrize(
    ("seconds", "n_steps", "told"), [(0.5, 10, "5 seconds"), (2.0, 300, "10 minutes"), (60.0, 2880, "2 days")]
)
def test_words(seconds, n_steps, told):
    found = DryRun(n_rows=8, n_tokens=256, seconds=seconds, n_steps=n_steps, peak=3 * 2**30, on_gpu=True)
    assert f"{n_steps:,} steps would take about {told}" in found.words()
    assert "at most 3 GiB of GPU memory" in found.words()
