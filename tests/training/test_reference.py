"""The moving average of the weights: what it holds, what it is for, and that a run resumes with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from quietstar import QuietStarForCausalLM, learn
from quietstar.runs.processes import ALONE
from quietstar.training import QuietStarTrainer
from quietstar.training.reference import Reference
from tests.training.test_trainer import LENGTHS, arguments, losses_of, model_of, parameters_of, rows, trained

EMA: dict[str, Any] = dict(reference="ema", ema_decay=0.6)


class Weights(TrainerCallback):
    """Keeps the weights before the first step and after each."""

    def __init__(self, model: QuietStarForCausalLM) -> None:
        self.model, self.seen = model, list[dict[str, Tensor]]()

    def note(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in self.model.named_parameters()})

    on_train_begin = on_step_end = note


def reference_of(model: QuietStarForCausalLM, folder: Path, **settings: Any) -> Reference:
    reference = Reference(arguments(folder, **EMA, **settings), ALONE)
    reference.begin(model)
    return reference


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_average_follows_the_weights(tmp_path: Path, device: str | None) -> None:
    model = model_of()
    weights = Weights(model)
    run = trained(tmp_path, rows(*LENGTHS), model, max_steps=4, callbacks=[weights], ema_device=device, **EMA)
    for name, average in run.parts.reference.average.items():
        expected = weights.seen[0][name]
        for after in weights.seen[1:]:
            expected = 0.6 * expected + 0.4 * after[name]
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert len(weights.seen) == 5
    assert not torch.equal(
        weights.seen[0]["mixing_head.layers.4.weight"], weights.seen[4]["mixing_head.layers.4.weight"]
    )


def test_a_bad_step_leaves_the_average_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuietStarTrainer, "_get_grad_norm", lambda *args, **how: _judged(args[0], float("nan")))
    run = trained(tmp_path, rows(*LENGTHS), max_steps=2, **EMA)
    assert run.parts.guard.bad_steps.count == 2
    assert run.parts.reference.average
    for name, average in run.parts.reference.average.items():
        assert torch.equal(average, dict(model_of().named_parameters())[name])


def _judged(run: QuietStarTrainer, norm: float) -> float:
    run.parts.guard.grad_norm = norm
    return norm


def test_with_adapters_it_has_what_trains(tmp_path: Path) -> None:
    model = model_of(lora={"r": 4})
    names = reference_of(model, tmp_path).average.keys()
    assert names == {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("lora_A" in name for name in names)
    assert not any(name.endswith("q_proj.weight") for name in names)


def test_it_is_in_place_for_a_while(tmp_path: Path) -> None:
    """In bfloat16, too, although the average is in float32; and weights come back if a pass fails."""
    model = model_of().to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.named_parameters()}
    reference = reference_of(model, tmp_path)
    for average in reference.average.values():
        average += 0.3
    with pytest.raises(InterruptedError), reference.in_place(model):
        assert_moved(model, before)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def assert_moved(model: QuietStarForCausalLM, before: dict[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, (before[name].float() + 0.3).to(torch.bfloat16))
    raise InterruptedError


def test_rewards_compare_with_the_first_weights_if_all_of_them_stay(tmp_path: Path) -> None:
    untouched = model_of()
    with torch.no_grad():
        run = trained_once_more(tmp_path, ema_decay=1.0)
    model, batch = run.model, run.data_collator(rows(9, 6, seed=4))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    run.parts.rollouts.score([batch], model, model, [0])
    base_nll = untouched(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).base_nll
    torch.testing.assert_close(batch["rollout"].reference_nll, base_nll)
    output = model(**batch)
    assert float((output.base_nll - base_nll).detach().abs().max()) > 0.1
    labels = learn.Labels.look_ahead(batch["labels"], batch["attention_mask"].bool(), 2, batch["attention_mask"])
    torch.testing.assert_close(output.reward, learn.reward(base_nll, output.talk_nll, labels))


def trained_once_more(folder: Path, **settings: Any) -> QuietStarTrainer:
    with torch.enable_grad():
        return trained(folder, rows(*LENGTHS), **(EMA | settings))


RESUMED = {
    "average": EMA,
    "divergence": EMA | dict(kl_weight=0.3),
    "policy epochs": dict(policy_epochs=3, clip_ratio=0.1),
    "a random policy": dict(think="probability:0.4"),
    "all": EMA | dict(kl_weight=0.3, policy_epochs=3, clip_ratio=0.1, think="entropy:2.5", think_fraction=0.5),
}


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize(("stop", "ends"), [(1, False), (3, False), (4, False), (5, True)])
def test_a_run_resumes_bit_by_bit(tmp_path: Path, case: str, stop: int, ends: bool) -> None:
    """Within an epoch of the texts and at its end, within the policy epochs of a set of thoughts and at their end."""
    how = RESUMED[case] | dict(max_steps=7, logging_steps=3, save_strategy="steps", save_steps=1, save_total_limit=9)
    how |= dict(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    straight = trained(tmp_path / "straight", rows(*LENGTHS), model_of(learn_to_end=ends), **how)
    resumed = QuietStarTrainer(
        model_of(learn_to_end=ends), arguments(tmp_path / "resumed", **how), train_dataset=rows(*LENGTHS)
    )
    resumed.train(str(tmp_path / "straight" / f"checkpoint-{stop}"))
    ours, theirs = parameters_of(resumed), parameters_of(straight)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert losses_of(resumed) == losses_of(straight)
    for name, average in straight.parts.reference.average.items():
        assert torch.equal(resumed.parts.reference.average[name], average)


def test_another_reference_is_another_run(tmp_path: Path) -> None:
    how = EMA | dict(save_strategy="steps", save_steps=1)
    trained(tmp_path, rows(*LENGTHS), **how)
    other = QuietStarTrainer(model_of(), arguments(tmp_path, **how | dict(ema_decay=0.9, max_steps=3)))
    with pytest.raises(Exception, match=r"ema_decay is 0\.9 and was 0\.6"):
        other.check_resumable(tmp_path / "checkpoint-2")
