"""One optimizer step is one mean over all its labels, however its rows are split; and a run repeats exactly."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from quietstar import QuietStarForCausalLM
from quietstar.errors import BadStepsError, SettingsError
from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments, positions
from quietstar.training.data.datasets import TextCollator
from quietstar.training.same_run import contents_of
from tests.tiny import VOCABULARY, tiny_base, tiny_model
from tests.tiny_tokenizer import byte_tokenizer, tiny_folder

LENGTHS = (3, 30, 2, 17, 9, 4, 26, 5)
"""very unequal, so that a mean of means is far from a mean"""


def rows(*lengths: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random texts of those lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()} for n in lengths]


def with_thoughts(texts: list[dict[str, Any]], P: int = 2, K: int = 2, seed: int = 1) -> list[dict[str, Any]]:
    """The same texts, each with thoughts [P, length, K] to think instead of sampling."""
    generator = torch.Generator().manual_seed(seed)
    return [
        row | {"thoughts": torch.randint(VOCABULARY, (P, len(row["input_ids"]), K), generator=generator)}
        for row in texts
    ]


def collate(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pads texts as TextCollator does, and their thoughts to [B, P, S, K]."""
    batch = TextCollator(0)([{"input_ids": row["input_ids"]} for row in features])
    S = batch["input_ids"].shape[1]
    batch["thoughts"] = torch.stack(
        [torch.nn.functional.pad(row["thoughts"], (0, 0, 0, S - row["thoughts"].shape[1])) for row in features]
    )
    return batch


def arguments(folder: Path, **settings: Any) -> QuietStarTrainingArguments:
    """Two silent steps that move parameters visibly."""
    chosen = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "max_steps": 2,
        "logging_steps": 1,
        "gradient_accumulation_steps": 1,
    }
    return QuietStarTrainingArguments(**(chosen | settings))


def model_of(**settings: Any) -> QuietStarForCausalLM:
    """A tiny thinking model; the policy loss is as large as the nll unless told otherwise."""
    return tiny_model(**({"n_ahead": 4, "n_ahead_talk": 2, "policy_weight": 1.0} | settings))


def trained(folder: Path, texts: list[dict[str, Any]], model: QuietStarForCausalLM | None = None, **settings: Any):
    """A trainer that has run."""
    collator = collate if "thoughts" in texts[0] else None
    extra = {name: settings.pop(name) for name in ("eval_dataset", "callbacks") if name in settings}
    made = QuietStarTrainer(
        model or model_of(), arguments(folder, **settings), train_dataset=texts, data_collator=collator, **extra
    )
    made.train()
    return made


def parameters_of(made: QuietStarTrainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}


def losses_of(made: QuietStarTrainer, name: str = "loss") -> list[float]:
    return [line[name] for line in made.state.log_history if name in line]


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).detach().abs().max()) for name in ours)


SPLITS = {
    "8 x 1": dict(per_device_train_batch_size=8, gradient_accumulation_steps=1),
    "1 x 8": dict(per_device_train_batch_size=1, gradient_accumulation_steps=8),
    "3 x 3": dict(per_device_train_batch_size=3, gradient_accumulation_steps=3),
}
OPTIMIZERS = {
    "sgd": dict(settings=dict(optim="sgd", learning_rate=0.1), atol=1e-6),
    # Adam moves a parameter by its learning rate even where its gradient is hardly above rounding
    "adamw": dict(settings=dict(optim="adamw_torch"), atol=1e-4),
}


def mostly_in_a_third_of_the_texts(
    labels: Tensor, fraction: float, generator: torch.Generator, *_: Any, **__: Any
) -> Tensor:
    """Replaces random positions by ones that depend on the text, not on the batch: one in most texts."""
    wanted = (labels[:, :1] % 3 == 0) & (labels % 4 > 0)
    wanted[:, 0] = True
    return wanted


@pytest.mark.parametrize(
    ("optimizer", "fraction", "splits"),
    [("sgd", 1.0, ["8 x 1", "1 x 8", "3 x 3"]), ("sgd", 0.4, ["8 x 1", "1 x 8"]), ("adamw", 1.0, ["8 x 1", "1 x 8"])],
    ids=["everywhere", "fraction", "adamw"],
)
@pytest.mark.parametrize("policy_weight", [0.0, 1e6, "balanced:0.5"])
def test_a_step_does_not_depend_on_how_its_rows_are_split(
    tmp_path, monkeypatch, optimizer, policy_weight, fraction, splits
):
    monkeypatch.setattr(positions, "draw_positions", mostly_in_a_third_of_the_texts)
    texts, chosen = with_thoughts(rows(*LENGTHS)), OPTIMIZERS[optimizer]
    runs = [
        trained(tmp_path, texts, model_of(policy_weight=policy_weight), think_fraction=fraction, **how)
        for how in (SPLITS[split] | chosen["settings"] for split in splits)
    ]
    whole = parameters_of(runs[0])
    assert furthest(whole, dict(model_of().named_parameters())) > 100 * chosen["atol"]
    for run in runs[1:]:
        assert losses_of(run) == pytest.approx(losses_of(runs[0]), rel=1e-5)
        assert losses_of(run, "nll") == pytest.approx(losses_of(runs[0], "nll"), rel=1e-5)
        torch.testing.assert_close(parameters_of(run), whole, rtol=1e-5, atol=chosen["atol"])


@pytest.mark.parametrize("policy_weight", [0.0, 1e6])
def test_means_of_each_batch_alone_would_be_noticed(tmp_path, monkeypatch, policy_weight):
    """The usual mean of means is far outside the tolerances of the test above."""
    texts, model = with_thoughts(rows(*LENGTHS)), model_of(policy_weight=policy_weight)
    how = SPLITS["1 x 8"] | OPTIMIZERS["sgd"]["settings"] | {"max_steps": 1}
    right = trained(tmp_path, texts, copy.deepcopy(model), **how)
    complete = QuietStarTrainer.get_batch_samples
    monkeypatch.setattr(QuietStarTrainer, "get_batch_samples", lambda *args: (complete(*args)[0], None))
    wrong = trained(tmp_path, texts, copy.deepcopy(model), **how)
    assert abs(losses_of(wrong)[0] / losses_of(right)[0] - 1) > 1e-2
    assert furthest(parameters_of(wrong), parameters_of(right)) > 1e-3


def test_a_line_of_several_steps_is_their_mean(tmp_path):
    texts = with_thoughts(rows(*LENGTHS))
    how = dict(max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    each = losses_of(trained(tmp_path, texts, logging_steps=1, **how))
    in_pairs = losses_of(trained(tmp_path, texts, logging_steps=2, **how))
    assert in_pairs == pytest.approx([sum(each[:2]) / 2, sum(each[2:]) / 2], rel=1e-5)


def test_the_loss_of_a_line_is_its_nll_and_weighted_policy_loss(tmp_path):
    run = trained(tmp_path, with_thoughts(rows(*LENGTHS)), model_of(policy_weight=7.0), **SPLITS["3 x 3"])
    for line in run.state.log_history[:2]:
        assert line["loss"] == pytest.approx(line["nll"] + 7.0 * line["policy_loss"], rel=1e-5)
        talk_nll = (line["talk_nll_0"] + line["talk_nll_1"]) / 2
        assert line["nll"] == pytest.approx(0.5 * line["base_nll"] + 0.5 * talk_nll, rel=1e-5)


# ---------------------------------------------------------------------- where to think


class Spy(TrainerCallback):
    """Notes the inputs and outputs of forward in training."""

    def __init__(self, model: QuietStarForCausalLM) -> None:
        self.calls: list[tuple[dict[str, Any], Any]] = []
        forward = model.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if torch.is_grad_enabled():
                self.calls.append((kwargs | {"training": model.training}, output))
            return output

        model.forward = noted


def test_think_fraction_thinks_at_other_positions_in_each_step_and_at_the_same_ones_in_a_repeated_run(tmp_path):
    drawn = []
    for _ in range(2):
        model = model_of()
        spy = Spy(model)
        trained(tmp_path, rows(21, 21, 21, 21), model, think_fraction=0.25, per_device_train_batch_size=4, max_steps=3)
        drawn.append([call["think_at"] for call, _ in spy.calls])
        for call, output in spy.calls:
            assert call["think_at"].sum(1).tolist() == [5, 5, 5, 5]
            elsewhere = ~call["think_at"]
            for values in (output.reward, output.advantage, output.talk_nll, output.mixing_weight, output.thoughts):
                assert (values.transpose(1, 2)[elsewhere] == 0).all()
            assert (output.reward.transpose(1, 2)[call["think_at"]][:, 0] != 0).sum() > 15
    first, second = drawn
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_batches_of_one_step_think_at_different_positions(tmp_path):
    model = model_of()
    spy = Spy(model)
    same = rows(21) * 4
    trained(tmp_path, same, model, think_fraction=0.25, gradient_accumulation_steps=4, max_steps=1)
    assert len({tuple(call["think_at"][0].tolist()) for call, _ in spy.calls}) == 4


def test_a_run_thinks_at_every_length_and_at_the_same_ones_if_it_is_repeated(tmp_path):
    """Accumulated batches of a step think equally long; held-out text is thought about at the model's own length."""
    drawn, how = [], dict(gradient_accumulation_steps=2, max_steps=8, eval_strategy="steps", eval_steps=8)
    for seed in (0, 0, 1):
        model = model_of(n_ahead=5)
        spy = Spy(model)
        made = trained(tmp_path, rows(9) * 4, model, n_ahead_min=2, seed=seed, eval_dataset=rows(9), **how)
        lengths = [output.thoughts.shape[-1] + 2 for call, output in spy.calls if call["training"]]
        assert lengths[::2] == lengths[1::2]
        drawn.append(lengths[::2])
        assert model.config.n_ahead == 5
        assert all(map(math.isfinite, losses_of(made)))
    assert drawn[0] == drawn[1] != drawn[2]
    assert {2, 5} <= {*drawn[0], *drawn[2]} <= {2, 3, 4, 5}


def test_a_range_of_one_length_is_that_length(tmp_path):
    plain = trained(tmp_path, rows(*LENGTHS), **SPLITS["3 x 3"])
    drawn = trained(tmp_path, rows(*LENGTHS), n_ahead_min=4, **SPLITS["3 x 3"])
    assert furthest(parameters_of(plain), parameters_of(drawn)) == 0


@pytest.mark.parametrize("think_tokens", [None, 2])
def test_a_policy_says_where_to_think(tmp_path, think_tokens):
    """Where the base pass is uncertain, of the weights at that step; and at so many of these positions."""
    policy = "entropy:2.8"
    run = QuietStarTrainer(
        model_of(), arguments(tmp_path, think=policy, think_tokens=think_tokens), train_dataset=rows(*LENGTHS)
    )
    batch = run.data_collator(rows(9, 30, seed=3))
    run.parts.begin_step([batch], 0, run.model, run.model)
    own = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        allowed = run.model(**own, think=policy, loss_only=True).think_at
        entropy = torch.distributions.Categorical(logits=run.model.base_lm(batch["input_ids"]).logits).entropy()
    assert torch.equal(allowed[1, :29], entropy[1, :29] > 2.8)
    assert 2 < allowed.sum() < 37
    if think_tokens is None:
        assert torch.equal(batch["think_at"], allowed)
    else:
        assert batch["think_at"].sum(1).tolist() == [min(2, int(row.sum())) for row in allowed]
        assert not (batch["think_at"] & ~allowed).any()
    run.train()


def test_think_fraction_one_is_everywhere(tmp_path):
    texts = with_thoughts(rows(*LENGTHS))
    plain = trained(tmp_path, texts, **SPLITS["3 x 3"])
    whole = trained(tmp_path, texts, think_fraction=1.0, **SPLITS["3 x 3"])
    assert furthest(parameters_of(plain), parameters_of(whole)) == 0


def test_think_fraction_zero_learns_no_thought(tmp_path):
    model = model_of()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run = trained(tmp_path, rows(*LENGTHS), model, think_fraction=0.0, weight_decay=0.0, **SPLITS["3 x 3"])
    for name, parameter in parameters_of(run).items():
        heads = name.startswith(("mixing_head", "thought_embeddings"))
        assert torch.equal(parameter, before[name]) == heads, name
    assert "reward_mean" not in run.state.log_history[0]


# ---------------------------------------------------------------------- evaluation

FIGURES = [
    "nll",
    "base_nll",
    "talk_nll_0",
    "talk_nll_1",
    "reward_mean",
    "reward_std",
    "thought_helped",
    "mixing_weight",
]


def test_figures_are_logged_at_their_steps(tmp_path):
    run = trained(tmp_path, rows(*LENGTHS), eval_dataset=rows(9, 4, seed=5), max_steps=5, eval_steps=2, logging_steps=2)
    evaluated = [line for line in run.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 2, 4, 5]
    for line in evaluated:
        assert {f"eval_{name}" for name in FIGURES} <= line.keys()
        assert line["eval_loss"] == line["eval_nll"]
        assert "eval_policy_loss" not in line
    learned = [line for line in run.state.log_history if "loss" in line]
    assert [line["step"] for line in learned] == [2, 4]
    for line in learned:
        assert {*FIGURES, "policy_loss", "tokens_per_second"} <= line.keys()
        assert all(isinstance(line[name], float) for name in FIGURES)
        assert line["tokens_per_second"] > 0
        assert 0 <= line["thought_helped"] <= 1


def test_held_out_figures_are_compared_with_those_before_training(tmp_path):
    held_out = rows(9, 4, 7, seed=5)
    model = model_of()
    with torch.no_grad():
        before = [model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["input_ids"]])) for row in held_out]
    run = trained(tmp_path, rows(*LENGTHS), model, eval_dataset=held_out, max_steps=4, eval_steps=2)
    evaluated = [line for line in run.state.log_history if "eval_loss" in line]
    first, last = evaluated[0], evaluated[-1]
    nll_before = torch.cat([output.base_nll[0, :-1] for output in before]).mean()
    for line in evaluated:
        assert line["eval_nll_before"] == pytest.approx(float(nll_before), rel=1e-5)
        assert line["eval_drift"] == pytest.approx(line["eval_base_nll"] - line["eval_nll_before"], abs=1e-6)
        assert line["eval_thought_gain"] == pytest.approx(line["eval_base_nll"] - line["eval_talk_nll_0"], abs=1e-6)
        assert line["eval_gain"] == pytest.approx(line["eval_nll_before"] - line["eval_talk_nll_0"], abs=1e-6)
        assert line["eval_drift_low"] <= line["eval_drift"] <= line["eval_drift_high"]
    assert first["eval_drift"] == 0
    assert abs(last["eval_drift"]) > 0.01


def test_an_evaluation_outside_training_compares_with_nothing(tmp_path):
    made = QuietStarTrainer(model_of(), arguments(tmp_path), eval_dataset=rows(*LENGTHS))
    assert "eval_drift" not in made.evaluate()


# ---------------------------------------------------------------------- health


def warnings_of(caplog) -> list[str]:
    """Warnings of the health checks, in order."""
    return [record.message for record in caplog.records if record.name == "quietstar.training.callbacks"]


def test_an_unhealthy_run_is_warned_of_once_and_can_be_stopped(tmp_path, caplog):
    """The learning rate destroys the model: held-out text gets worse, and the best checkpoint is loaded."""
    how = dict(eval_dataset=rows(*LENGTHS, seed=5), max_steps=6, eval_steps=1, learning_rate=0.3)
    whole = trained(tmp_path / "whole", rows(*LENGTHS), model_of(policy_weight=0.0), **how)
    told = warnings_of(caplog)
    assert sum("held-out text is predicted worse than before training: base_nll" in words for words in told) == 1
    first = next(line["step"] for line in whole.state.log_history if line.get("eval_drift_low", 0) > 0)
    assert told[0].startswith(f"step {first}: ")
    stopped = trained(
        tmp_path / "stopped", rows(*LENGTHS), model_of(policy_weight=0.0), stop_when_unhealthy=True, **how
    )
    assert stopped.state.global_step == first
    assert warnings_of(caplog)[-1] == f"step {first} of 6: the run ends here (stop_when_unhealthy)"
    best = min(range(1, first + 1), key=lambda step: losses_of(stopped, "eval_loss")[step])
    assert stopped.state.best_model_checkpoint == str(tmp_path / "stopped" / f"checkpoint-{best}")


def test_a_resumed_run_remembers_figures_before_training_and_warnings(tmp_path, caplog):
    how = dict(eval_dataset=rows(*LENGTHS, seed=5), eval_steps=1, learning_rate=0.3)
    saving = how | dict(save_strategy="steps", save_steps=1)
    whole = trained(tmp_path / "whole", rows(*LENGTHS), max_steps=5, **how)
    told = warnings_of(caplog)
    caplog.clear()
    trained(tmp_path / "parts", rows(*LENGTHS), max_steps=3, **saving)
    assert warnings_of(caplog)
    held_out = saving.pop("eval_dataset")
    settings = arguments(tmp_path / "parts", max_steps=5, **saving)
    made = QuietStarTrainer(model_of(), settings, train_dataset=rows(*LENGTHS), eval_dataset=held_out)
    made.train(resume_from_checkpoint=True)
    for name in ("eval_nll_before", "eval_drift", "eval_drift_low", "eval_gain"):
        assert losses_of(made, name) == losses_of(whole, name), name
    assert warnings_of(caplog) == told


def test_heads_may_have_their_own_learning_rate(tmp_path):
    before = dict(model_of().named_parameters())
    moved = parameters_of(trained(tmp_path, rows(*LENGTHS), learning_rate=1e-6, head_learning_rate=1e-2, max_steps=1))
    for name, parameter in moved.items():
        furthest_moved = float((parameter - before[name]).detach().abs().max())
        is_head = name.startswith(("mixing_head", "thought_embeddings"))
        assert furthest_moved == pytest.approx(1e-2 if is_head else 1e-6, rel=0.2), name


@pytest.mark.parametrize("apart", [True, False])
def test_gradients_of_heads_are_clipped_apart(tmp_path, apart):
    """The thought embeddings', scaled up, do not shorten what the base model learns from."""
    made = QuietStarTrainer(model_of(), arguments(tmp_path, clip_heads_apart=apart), train_dataset=rows(5))
    for name, parameter in made.model.named_parameters():
        value = 100.0 if name.startswith("thought_embeddings") else 0.001
        parameter.grad = torch.full_like(parameter, value)
    before = {name: parameter.grad.clone() for name, parameter in made.model.named_parameters()}
    norm = torch.cat([gradient.flatten() for gradient in before.values()]).norm()
    torch.testing.assert_close(made._clip_grad_norm(made.model), norm)
    for name, parameter in made.model.named_parameters():
        if name.startswith("base_lm") and apart:
            assert torch.equal(parameter.grad, before[name])
        else:
            assert (parameter.grad < before[name] / 100).all()


@pytest.mark.parametrize("frozen", ["base_lm", "mixing_head|thought_embeddings"])
def test_gradients_are_clipped_together_if_only_heads_learn(tmp_path, frozen, monkeypatch):
    """A norm of no gradients would lie on the CPU, beside one on a GPU."""
    made = QuietStarTrainer(model_of(), arguments(tmp_path), train_dataset=rows(5))
    for name, parameter in made.model.named_parameters():
        parameter.grad = None if re.match(frozen, name) else torch.ones_like(parameter)
    learning = [parameter.grad.clone() for parameter in made.model.parameters() if parameter.grad is not None]
    clip, clipped = made.accelerator.clip_grad_norm_, []

    def noted(parameters: Any, *args: Any) -> Tensor:
        clipped.append([parameter for parameter in parameters if parameter.grad is not None])
        return clip(clipped[-1], *args)

    monkeypatch.setattr(made.accelerator, "clip_grad_norm_", noted)
    norm = made._clip_grad_norm(made.model)
    torch.testing.assert_close(norm, torch.cat([gradient.flatten() for gradient in learning]).norm())
    assert [len(each) for each in clipped] == [len(learning)]


@pytest.mark.parametrize(("before", "after"), [(None, 1e-3), (1e-3, None), (1e-3, 1e-2)])
def test_a_run_may_resume_with_another_learning_rate_of_its_heads(tmp_path, before, after):
    """Moments stay with their parameters, whatever groups the optimizer has."""
    how = dict(save_strategy="steps", save_steps=1)
    first = trained(tmp_path, rows(*LENGTHS), max_steps=1, head_learning_rate=before, **how)
    changed = arguments(tmp_path, max_steps=2, head_learning_rate=after, allow_changes=True, **how)
    made = QuietStarTrainer(model_of(), changed, train_dataset=rows(*LENGTHS))
    left = {}

    class Look(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            left.update(moments_of(made))

    made.add_callback(Look())
    made.train(resume_from_checkpoint=True)
    for name, moment in moments_of(first).items():
        assert torch.equal(left[name], moment), name
    rates = {
        name: group["lr"]
        for group in made.optimizer.param_groups
        for name, parameter in made.model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    for name, rate in rates.items():
        is_head = name.startswith(("mixing_head", "thought_embeddings"))
        assert rate == (after if is_head and after is not None else 1e-2), name


def moments_of(made: QuietStarTrainer) -> dict[str, Tensor]:
    """Name of a parameter -> the mean of its gradients that AdamW has."""
    state = made.optimizer.state
    return {name: state[each]["exp_avg"].clone() for name, each in made.model.named_parameters() if each in state}


def test_evaluation_loss_has_no_policy_term(tmp_path):
    evaluations = [
        QuietStarTrainer(model_of(policy_weight=weight), arguments(tmp_path), eval_dataset=rows(*LENGTHS)).evaluate()
        for weight in (0.0, 1e6)
    ]
    assert evaluations[0]["eval_loss"] == evaluations[1]["eval_loss"]


def test_evaluation_is_the_same_in_any_batches_and_means_over_all_labels(tmp_path):
    texts, model = rows(*LENGTHS), model_of()
    figures = [
        QuietStarTrainer(model, arguments(tmp_path, per_device_eval_batch_size=n), eval_dataset=texts).evaluate()
        for n in (1, 3, 8)
    ]
    for other in figures[1:]:
        for name in FIGURES:
            assert other[f"eval_{name}"] == pytest.approx(figures[0][f"eval_{name}"], rel=1e-5, abs=1e-6), name

    with torch.no_grad():
        alone = [model(ids, labels=ids) for ids in (torch.tensor([row["input_ids"]]) for row in texts)]
    base = torch.cat([output.base_nll[0, :-1] for output in alone])
    talk = [torch.cat([output.talk_nll[0, 0, : -1 - k, k] for output in alone]) for k in range(2)]
    assert figures[2]["eval_base_nll"] == pytest.approx(float(base.mean()), rel=1e-5)
    for k in range(2):
        assert figures[2][f"eval_talk_nll_{k}"] == pytest.approx(float(talk[k].mean()), rel=1e-5)
    expected = 0.5 * base.mean() + 0.25 * (talk[0].mean() + talk[1].mean())
    assert figures[2]["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_model_is_in_training_mode_after_an_evaluation(tmp_path):
    model = model_of()
    spy = Spy(model)
    run = trained(tmp_path, rows(*LENGTHS), model, eval_dataset=rows(9, 4, seed=5), eval_steps=1, max_steps=3)
    assert [call["training"] for call, _ in spy.calls] == [True] * 3
    assert len(losses_of(run, "eval_loss")) == 4


def test_an_evaluation_repeats_whatever_the_random_state(tmp_path):
    made = QuietStarTrainer(model_of(), arguments(tmp_path), eval_dataset=rows(*LENGTHS))
    first = made.evaluate()
    torch.rand(5)
    second = made.evaluate()
    assert {name: first[f"eval_{name}"] for name in FIGURES} == {name: second[f"eval_{name}"] for name in FIGURES}


def test_the_number_of_evaluations_does_not_change_what_is_learned(tmp_path):
    """This includes sampled thoughts and dropout."""
    model = model_of(base=dict(attention_dropout=0.5))
    held_out = dict(eval_dataset=rows(9, 4, seed=5), eval_steps=1)
    often = trained(tmp_path, rows(*LENGTHS), copy.deepcopy(model), max_steps=3, **held_out)
    never = trained(tmp_path, rows(*LENGTHS), copy.deepcopy(model), max_steps=3)
    assert losses_of(often) == losses_of(never)
    assert furthest(parameters_of(often), parameters_of(never)) == 0


def test_without_held_out_text_nothing_is_evaluated(tmp_path):
    assert losses_of(trained(tmp_path, rows(5, 6)), "eval_loss") == []


# ---------------------------------------------------------------------- losses that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_whose_loss_is_not_finite_is_skipped_counted_and_kept(tmp_path, value):
    model = model_of()
    forward, calls = model.forward, []

    def broken_at_the_seventh(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        calls.append(kwargs["input_ids"])
        if len(calls) == 7:  # the third of four batches in the second step
            output.loss = output.loss + value
        return output

    after_step: list[dict[str, Tensor]] = []

    class Copy(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            after_step.append({name: p.detach().clone() for name, p in model.named_parameters()})

    model.forward = broken_at_the_seventh
    texts = rows(*LENGTHS)
    run = trained(
        tmp_path, texts, model, gradient_accumulation_steps=4, max_steps=4, logging_steps=2, callbacks=[Copy()]
    )
    first, skipped, after, _ = after_step
    assert furthest(first, skipped) == 0
    assert furthest(skipped, after) > 0
    lines = [line for line in run.state.log_history if "loss" in line]
    assert [line["bad_steps"] for line in lines] == [1, 1]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["nll"]) for line in lines)
    assert lines[0]["loss"] == pytest.approx(lines[0]["nll"] + lines[0]["policy_loss"], rel=1e-5)  # of the first step
    of_good_steps = (lines[0]["loss"] + 2 * lines[1]["loss"]) / 3
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(of_good_steps, rel=1e-5)
    (file,) = (tmp_path / "bad-steps").iterdir()
    told = json.loads(file.read_text())
    assert (told["step"], told["rank"], told["why"]) == (2, 0, f"the loss is {value}")
    assert [batch["input_ids"] for batch in told["batches"]] == [ids.tolist() for ids in calls[4:8]]
    assert [math.isfinite(batch["loss"]) for batch in told["batches"]] == [True, True, False, True]


@pytest.mark.parametrize("broken", ["mixing_head.layers.4.weight", "base_lm.model.norm.weight"])
def test_bad_steps_in_a_row_stop_the_run(tmp_path, broken):
    model = model_of()
    with torch.no_grad():
        model.get_parameter(broken).view(-1)[0] = float("nan")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    how = dict(max_bad_steps=3, max_steps=9, save_strategy="steps", save_steps=2)
    with pytest.raises(BadStepsError, match="the loss is nan at step 3, the last of 3 bad steps in a row"):
        trained(tmp_path, rows(*LENGTHS), model, **how)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0, equal_nan=True)
    assert len(list((tmp_path / "bad-steps").iterdir())) == 3
    assert not list(tmp_path.glob("checkpoint-*"))  # what gives such steps may be the weights


def test_a_step_is_skipped_if_only_its_gradient_is_not_finite(tmp_path):
    model = model_of()
    weight = model.mixing_head.layers[4].weight
    calls = []

    def broken_at_the_second(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) == 2 else gradient

    weight.register_hook(broken_at_the_second)
    run = trained(tmp_path, rows(*LENGTHS), model, max_steps=3, max_grad_norm=0.0)
    assert [line["bad_steps"] for line in run.state.log_history if "bad_steps" in line] == [0, 1, 1]
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_checkpoint_that_is_due_at_a_bad_step_waits_for_a_good_one(tmp_path):
    model = model_of()
    forward, calls = model.forward, []

    def broken_twice(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        calls.append(1)
        if len(calls) in (2, 3):
            output.loss = output.loss + float("nan")
        return output

    model.forward = broken_twice
    trained(tmp_path, rows(*LENGTHS), model, max_steps=5, save_strategy="steps", save_steps=2, save_total_limit=9)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_spikes_are_skipped_if_asked_for(tmp_path):
    def run(name: str, **how: Any) -> QuietStarTrainer:
        model = model_of()
        forward, calls = model.forward, []

        def loud_at_the_thirtieth(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            calls.append(1)
            if len(calls) == 30:
                output.loss = output.loss * 1e4
            return output

        model.forward = loud_at_the_thirtieth
        how = dict(learning_rate=1e-4, max_steps=31) | how
        return trained(tmp_path / name, rows(21) * 8, model, per_device_train_batch_size=8, **how)

    def bad(made: QuietStarTrainer) -> list[int]:
        return [line["bad_steps"] for line in made.state.log_history if "bad_steps" in line]

    assert bad(run("heeded", skip_spikes=20.0)) == [0] * 29 + [1, 1]
    assert set(bad(run("not asked for"))) == {0}


# ---------------------------------------------------------------------- repeating a run


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox", "gemma3_text"])
def test_a_run_resumes_if_weights_are_published_under_other_names(tmp_path, family):
    """Experts one by one, another name of the head: a checkpoint has the names of the model, and is one to load."""
    how = dict(save_strategy="steps", save_steps=2, save_total_limit=9, max_steps=4)

    def run(name: str, resumed_from: Path | None = None) -> QuietStarForCausalLM:
        model = model_of(family=family)
        texts = rows(*LENGTHS, *LENGTHS)
        QuietStarTrainer(model, arguments(tmp_path / name, **how), train_dataset=texts).train(
            str(resumed_from) if resumed_from else None
        )
        return model

    straight, checkpoint = run("straight"), tmp_path / "straight" / "checkpoint-2"
    loaded = dict(QuietStarForCausalLM.from_pretrained(checkpoint).named_parameters())
    stored = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in loaded.items() if name in stored)
    resumed = dict(run("resumed", checkpoint).named_parameters())
    assert all(torch.equal(value, resumed[name]) for name, value in straight.named_parameters())


def test_a_seed_decides_everything(tmp_path):
    """This includes sampled thoughts and the order of rows, whatever the random state was before."""
    runs = []
    for seed in (3, 3, 4):
        torch.rand(len(runs))
        runs.append(parameters_of(trained(tmp_path, rows(*LENGTHS), seed=seed, max_steps=3)))
    assert furthest(runs[0], runs[1]) == 0
    assert furthest(runs[0], runs[2]) > 1e-3


def test_a_seed_decides_the_heads_of_a_model_given_by_name(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    made = []
    for seed in (3, 3, 4):
        torch.rand(len(made) + 1)
        made.append(QuietStarTrainer(folder, arguments(tmp_path / "run", seed=seed, n_ahead=4)).model)
    heads = [dict(model.mixing_head.named_parameters()) for model in made]
    assert furthest(heads[0], heads[1]) == 0
    assert furthest(heads[0], heads[2]) > 1e-3


@pytest.mark.parametrize(
    ("policy_weight", "lora"),
    [(0.0, None), (1.0, None), (1.0, {"r": 4, "lora_alpha": 8})],
    ids=["nll", "with policy", "lora"],
)
def test_gradient_checkpointing_learns_the_same(tmp_path, policy_weight, lora):
    texts, how = with_thoughts(rows(*LENGTHS)), dict(optim="sgd", learning_rate=0.1, per_device_train_batch_size=4)
    if lora:
        pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    model = model_of(policy_weight=policy_weight, lora=lora)
    assert not lora or not model.get_parameter("base_lm.model.embed_tokens.weight").requires_grad
    plain = trained(tmp_path, texts, copy.deepcopy(model), **how)
    saving = trained(tmp_path, texts, copy.deepcopy(model), gradient_checkpointing=True, **how)
    assert saving.model.thinker().trunk.is_checkpointing
    assert losses_of(saving) == pytest.approx(losses_of(plain), rel=1e-5)
    torch.testing.assert_close(parameters_of(saving), parameters_of(plain), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near_float32(tmp_path):
    texts, how = with_thoughts(rows(*LENGTHS)), dict(optim="sgd", learning_rate=0.1, per_device_train_batch_size=8)
    how["max_steps"] = 1
    full = trained(tmp_path, texts, model_of(policy_weight=0.0), **how)
    half = trained(tmp_path, texts, model_of(policy_weight=0.0), bf16=True, **how)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    assert losses_of(half)[0] == pytest.approx(losses_of(full)[0], rel=2e-2)
    assert losses_of(half) != losses_of(full)
    before = dict(model_of().named_parameters())
    moved = torch.cat([(p - before[name]).flatten() for name, p in parameters_of(full).items()]).detach()
    moved_half = torch.cat([(p - before[name]).flatten() for name, p in parameters_of(half).items()]).detach()
    assert torch.cosine_similarity(moved, moved_half, dim=0) > 0.98


# ---------------------------------------------------------------------- which model


def test_a_model_may_be_a_name_a_folder_or_a_base_model(tmp_path):
    base, ours = tiny_folder(tmp_path / "base"), tmp_path / "ours"
    made = QuietStarTrainer(str(base), arguments(tmp_path / "run", n_ahead=5, n_passes=3))
    assert (made.model.config.n_ahead, made.model.config.n_passes) == (5, 3)
    assert made.processing_class.eos_token_id == 2
    made.model.save_pretrained(ours)
    again = QuietStarTrainer(ours, arguments(tmp_path / "run", n_ahead=4))
    assert (again.model.config.n_ahead, again.model.config.n_passes) == (4, 3)
    assert furthest(parameters_of(again), parameters_of(made)) == 0
    base_lm, tokenizer = tiny_base(vocab_size=259), byte_tokenizer()
    given = QuietStarTrainer(base_lm, arguments(tmp_path / "run", n_ahead=4), processing_class=tokenizer)
    assert isinstance(given.model, QuietStarForCausalLM)
    assert given.model.config.n_ahead == 4


def test_a_model_is_taken_as_it_is_and_one_given_by_name_trains_in_float32(tmp_path, caplog):
    folder = tmp_path / "half"
    base_lm, tokenizer = tiny_base(vocab_size=259).to(torch.bfloat16), byte_tokenizer()
    base_lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    named = QuietStarTrainer(str(folder), arguments(tmp_path / "run", n_ahead=4))
    assert {parameter.dtype for parameter in named.model.parameters()} == {torch.float32}
    assert "is lost" not in caplog.text
    given = QuietStarTrainer(base_lm, arguments(tmp_path / "run", n_ahead=4), processing_class=tokenizer)
    assert {parameter.dtype for parameter in given.model.base_lm.parameters()} == {torch.bfloat16}
    assert caplog.text.count("the weights that train are bfloat16") == 1


def test_the_initial_thought_cannot_be_changed_later(tmp_path):
    with pytest.raises(SettingsError, match=r"initial_thought_text is 'hm', .* '---'"):
        QuietStarTrainer(model_of(), arguments(tmp_path, initial_thought_text="hm"))
    with pytest.raises(SettingsError, match="mixing is thought, but this model was made with head"):
        QuietStarTrainer(model_of(), arguments(tmp_path, mixing="thought"))


def test_impossible_settings_of_the_method_are_refused_for_a_loaded_model(tmp_path):
    for name in ("n_ahead", "n_ahead_talk", "n_passes"):
        with pytest.raises(SettingsError, match=f"^{name} is 0"):
            QuietStarTrainer(model_of(), arguments(tmp_path, **{name: 0}))


def test_a_price_for_each_token_makes_thoughts_shorter(tmp_path):
    """A run with it resumes, too; without a price, thoughts keep some length."""

    def length_after(**settings):
        how = dict(max_steps=40, advantage="leave_one_out", policy_weight="3", head_learning_rate=0.05, **settings)
        run = trained(tmp_path, rows(*LENGTHS), model_of(n_ahead=6, learn_to_end=True), **how)
        with torch.no_grad():
            found = run.model.eval()(torch.tensor([[5, 6, 7, 8, 9, 10]]), thought_temperature=1.0, n_passes=30)
        return float((found.thoughts >= 0).sum(-1).float().mean())

    assert length_after(length_price=2.0) < 0.5 * length_after(length_price=0.0)


def test_rows_in_memory_are_those_of_the_run_that_is_resumed(tmp_path):
    texts = rows(*LENGTHS)
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "per_device_train_batch_size": 2}
    trained(tmp_path, texts, **settings)
    more = settings | {"max_steps": 2, "resume": True}
    for other in (rows(*LENGTHS, seed=1), texts[:-1], [*texts, texts[0]]):
        with pytest.raises(SettingsError, match="the rows to train on have changed"):
            trained(tmp_path, other, **more)
    assert trained(tmp_path, [dict(row) for row in texts], **more).state.global_step == 2


def test_rows_that_differ_each_time_are_not_compared():
    class Cropped(list):
        def __getitem__(self, index):
            return {"input_ids": torch.randint(9, (5,))}

    assert contents_of(Cropped(range(3))) == {}
    assert contents_of(rows(*LENGTHS)) == contents_of(
        [{"input_ids": torch.tensor(row["input_ids"])} for row in rows(*LENGTHS)]
    )


def test_resume_begins_where_there_is_no_checkpoint(tmp_path):
    texts, settings = rows(*LENGTHS), {"save_strategy": "steps", "save_steps": 1, "resume": True}
    assert trained(tmp_path, texts, **settings, max_steps=1).state.global_step == 1
    again = trained(tmp_path, texts, **settings, max_steps=2)
    assert again.resumed == tmp_path / "checkpoint-1"
