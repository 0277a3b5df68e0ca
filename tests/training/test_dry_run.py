"""A dry run takes a few steps on full rows, leaves nothing behind, and says what one took."""

import time

import pytest
import soak

from quietstar.training import QuietStarTrainer
from quietstar.training.dry_run import STEPS, DryRun
from tests.training.test_killed import train


def test_a_dry_run_takes_full_rows_and_leaves_nothing(inputs, tmp_path, monkeypatch):
    seen, step = [], QuietStarTrainer.training_step

    def noted(self, model, batch, *args):
        assert "n_ahead" not in batch  # the longest thoughts are measured
        seen.append((tuple(batch["input_ids"].shape), int(batch["attention_mask"].sum())))
        return step(self, model, batch, *args)

    monkeypatch.setattr(QuietStarTrainer, "training_step", noted)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    how = dict(dry_run=True, max_steps=300, resume=False, n_ahead_min=2, report_to="tensorboard")
    found = train(inputs, tmp_path / "run", **how)["dry_run"]
    assert seen == [((2, 12), 24)] * 2 * STEPS
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "events").exists()
    assert (found.n_rows, found.n_tokens, found.n_steps, found.on_gpu) == (4, 12, 300, False)
    assert 0 < found.seconds < 60
    assert found.peak > 2**26


def test_what_is_measured_has_the_optimizers_states_and_not_the_first_batch(inputs, tmp_path, monkeypatch):
    n_states, step = [], QuietStarTrainer.training_step

    def slow_at_first(self, *args):
        n_states.append(len(self.optimizer.state))
        if len(n_states) == 1:
            time.sleep(1)
        return step(self, *args)

    monkeypatch.setattr(QuietStarTrainer, "training_step", slow_at_first)
    how = dict(dry_run=True, max_steps=1, gradient_accumulation_steps=1, resume=False)
    found = train(inputs, tmp_path / "run", **how)["dry_run"]
    assert found.n_steps == 1
    assert found.seconds < 0.5
    assert n_states[0] == 0 < min(n_states[1:])
    assert len(n_states) == STEPS


def test_steps_of_epochs_are_counted(inputs, tmp_path):
    how = dict(dry_run=True, max_steps=-1, num_train_epochs=2, resume=False)
    assert train(inputs, tmp_path / "run", **how)["dry_run"].n_steps == 30


def test_an_earlier_run_is_not_changed(inputs, tmp_path):
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
