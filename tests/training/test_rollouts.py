"""What a step's batches bring from before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quietstar.learn import NO_ROLLOUT
from quietstar.training import QuietStarTrainer
from tests.training.test_step_guard import SGD, with_room_for
from tests.training.test_trainer import LENGTHS, arguments, losses_of, model_of, rows, trained, with_thoughts

EPOCHS: dict[str, Any] = dict(policy_epochs=2, clip_ratio=0.2)


def seen_batches(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[tuple[dict, Any]]:
    """What each batch of a run was given, and what forward returned for it."""
    seen, compute = [], QuietStarTrainer.compute_loss

    def noted(self: QuietStarTrainer, model: Any, inputs: Any, *args: Any, **how: Any) -> Any:
        loss, output = compute(self, model, inputs, True, **{k: v for k, v in how.items() if k != "return_outputs"})
        seen.append((inputs, output))
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(QuietStarTrainer, "compute_loss", noted)
        trained(folder, rows(*LENGTHS), max_steps=4, per_device_train_batch_size=4, **settings)
    return seen


@pytest.mark.parametrize("policy", [False, True], ids=["drawn", "by a policy"])
def test_policy_epochs_learn_from_the_same_thoughts(
    policy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = dict(think="entropy:2.8") if policy else dict(think_fraction=0.5)
    first, again, other, _ = seen_batches(tmp_path, monkeypatch, **where, **EPOCHS)
    for name in ("input_ids", "think_at"):
        assert torch.equal(first[0][name], again[0][name]), name
    for name in ("thoughts", "advantage", "drawn_logprob"):
        assert torch.equal(getattr(first[1], name), getattr(again[1], name)), name
    assert torch.equal(again[0]["rollout"].logprob, first[1].thought_logprob)
    assert not torch.equal(again[1].thought_logprob, first[1].thought_logprob)
    assert first[0]["rollout"].tensors() == {}
    assert "thoughts" not in other[0]
    assert other[0]["input_ids"].tolist() != first[0]["input_ids"].tolist()


def test_a_clipped_step_moves_thoughts_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(**settings: Any) -> float:
        how = dict(nll_weight=0.0, policy_weight="100", policy_epochs=4, **settings)
        first, *_, last = seen_batches(tmp_path, monkeypatch, **how)
        return float((last[1].thought_logprob - first[1].thought_logprob).abs().mean())

    assert moved(clip_ratio=0.01) < 0.8 * moved()


def test_the_reference_scores_the_thoughts_that_are_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After no step the reference is the model itself: all its log-probabilities are those of the model."""
    ((batch, output), *_) = seen_batches(tmp_path, monkeypatch, reference="ema", kl_weight=0.5)
    assert torch.equal(output.thoughts, batch["thoughts"])
    assert output.thoughts.shape[1] == 2
    scored = output.thought_logprob.detach() != 0
    assert scored.any()
    torch.testing.assert_close(batch["rollout"].reference_logprob[scored], output.thought_logprob[scored])
    torch.testing.assert_close(batch["rollout"].reference_nll, output.base_nll)
    torch.testing.assert_close(output.drawn_logprob[scored], output.thought_logprob[scored])


def test_batches_are_left_alone_without_a_reference_and_further_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch, _ in seen_batches(tmp_path, monkeypatch):
        assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_a_reference_alone_samples_and_learns_as_before(tmp_path: Path) -> None:
    """A reference that is the model itself, decay 0, changes nothing, not even which thoughts are sampled."""
    own = trained(tmp_path / "own", rows(*LENGTHS))
    ema = trained(tmp_path / "ema", rows(*LENGTHS), reference="ema", ema_decay=0.0)
    assert losses_of(ema) == pytest.approx(losses_of(own), rel=1e-5)


@pytest.mark.parametrize("n_rows", [2, 3])
def test_pieces_of_a_batch_bring_their_own(tmp_path: Path, n_rows: int) -> None:
    how = SGD | dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, **EPOCHS)
    how |= dict(reference="ema", ema_decay=0.5, kl_weight=0.5)
    texts = with_thoughts(rows(*LENGTHS))
    whole = trained(tmp_path, texts, **how)
    with (patch := with_room_for(n_rows)).context():
        halved = trained(tmp_path, texts, **how, auto_micro_batch=True)
    patch.undo()
    assert halved.parts.guard.rows_at_once == 2
    assert losses_of(halved) == pytest.approx(losses_of(whole), rel=1e-5)


def test_a_bad_step_is_thought_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thoughts are forgotten with its figures: the next step on the same rows samples its own."""
    norms = iter([float("nan"), 1.0, 1.0, 1.0])

    def judged(self: QuietStarTrainer, *args: Any, **how: Any) -> float:
        self.parts.guard.grad_norm = next(norms)
        return self.parts.guard.grad_norm

    monkeypatch.setattr(QuietStarTrainer, "_get_grad_norm", judged)
    bad, again, *_ = seen_batches(tmp_path, monkeypatch, **EPOCHS)
    assert torch.equal(bad[0]["input_ids"], again[0]["input_ids"])
    assert "thoughts" not in again[0]
    assert again[0]["rollout"] == NO_ROLLOUT or again[0]["rollout"].logprob is None


def test_a_stream_cannot_be_read_again(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(rows(3, 4))

    told = r"^policy_epochs is 2, which reads the rows of a step again, and a stream is read once"
    with pytest.raises(Exception, match=told):
        QuietStarTrainer(model_of(), arguments(tmp_path, policy_epochs=2), train_dataset=Stream())
