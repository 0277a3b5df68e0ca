"""The policy term's weight, balanced against the nll's gradient, beside gradients made by autograd."""

import pytest
import torch
from torch import Tensor

from quietstar import QuietStarForCausalLM, objective
from quietstar.errors import SettingsError
from quietstar.learn import HIGHEST_BALANCED_WEIGHT, IGNORED, Labels, PolicyWeight
from quietstar.output import QuietStarOutput
from tests.tiny import random_thoughts, texts, tiny_model


def inputs_of(model: QuietStarForCausalLM, *lengths: int) -> dict[str, Tensor]:
    inputs = texts(*lengths)
    inputs["labels"][0, 3:5] = IGNORED
    inputs["thoughts"] = random_thoughts(model, len(lengths), max(lengths), P=2)
    return inputs


def gradients_at_states(
    model: QuietStarForCausalLM, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """[B] lengths of the gradients of nll and policy loss at each row's states, by autograd on the states."""
    caught = {}

    def catch(output: QuietStarOutput, predicted: object, *args: object, **how: object) -> None:
        caught["states"] = (predicted.h_base, predicted.said.mixed, predicted.said.branches.h_sampled)
        caught["rows"] = predicted.grid.rows
        right(output, predicted, *args, **how)

    right = objective.fill_in_losses
    with monkeypatch.context() as patch:
        patch.setattr("quietstar.model.fill_in_losses", catch)
        output = model(**inputs)
    h_base, mixed, h_sampled = caught["states"]
    # the states as leaves: mixed states come from h_base, whose own part is the base pass's prediction alone
    nll_of_mixed, policy = (
        torch.autograd.grad(loss, of, retain_graph=True)[0]
        for loss, of in ((output.nll, mixed), (output.policy_loss, h_sampled))
    )
    through_head = torch.autograd.grad(output.base_nll.sum(), h_base, retain_graph=True)[0]
    share = model.config.base_loss_weight / (output.base_nll != 0).sum()
    B = len(h_base)

    def by_row(of_branches: Tensor) -> Tensor:
        of_columns = of_branches.square().sum((0, 2, 3))
        return torch.zeros(B).index_add(0, caught["rows"], of_columns)

    nll = by_row(nll_of_mixed) + (share * through_head).square().sum((1, 2))
    return nll.sqrt(), by_row(policy).sqrt()


@pytest.mark.parametrize("loss_only", [True, False], ids=["gradients with the loss", "by autograd"])
def test_a_balanced_policy_gradient_is_so_many_times_the_nlls(loss_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight=1.0).train()
    inputs = inputs_of(model, 9, 4)
    nll, policy = gradients_at_states(model, inputs, monkeypatch)
    weights = 0.3 * nll / policy
    assert (weights < HIGHEST_BALANCED_WEIGHT).all()

    plain = model(**inputs)
    by_hand = plain.nll - sum(
        float(weights[b]) * (plain.advantage[b][..., None] * plain.thought_logprob[b])[counted].sum()
        for b, counted in enumerate(counted_columns(inputs))
    ) / (2 * 2 * counted_columns(inputs).sum() / 2)
    expected = torch.autograd.grad(by_hand, list(model.parameters()))

    model.config.policy_weight = "balanced:0.3"
    output = model(**inputs, loss_only=loss_only)
    torch.testing.assert_close(output.loss, by_hand, rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(output.loss, list(model.parameters()))
    for (name, _), own, theirs in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()), msg=name)
    if loss_only:
        torch.testing.assert_close(output.nll_gradient.sqrt(), nll.square().sum().sqrt(), rtol=1e-4, atol=0)
        torch.testing.assert_close(output.policy_gradient, 0.09 * output.nll_gradient, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss_only", [True, False], ids=["gradients with the loss", "by autograd"])
def test_a_frozen_base_pass_has_no_part_in_the_balance(loss_only: bool) -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight="balanced:0.3").train()
    model.freeze_base()
    inputs = inputs_of(model, 9, 4)
    output = model(**inputs, loss_only=loss_only)
    model.config.base_loss_weight, weight = 1e-9, model.config.base_loss_weight
    alone = model(**inputs, loss_only=True)  # the talk loss is all there is
    expected = (alone.loss - alone.nll) * (1 - weight)
    torch.testing.assert_close(output.loss - output.nll, expected, rtol=1e-4, atol=1e-5)


def counted_columns(inputs: dict[str, Tensor]) -> Tensor:
    """[B, P, S] bool: columns with all their labels."""
    everywhere = torch.ones_like(inputs["labels"], dtype=torch.bool)
    labels = Labels.look_ahead(inputs["labels"], everywhere, 2, inputs["attention_mask"])
    return labels.complete[:, None].expand(-1, 2, -1)


def test_thoughts_with_one_reward_are_not_reinforced() -> None:
    """A shut mixing head rewards all alike: nothing is divided by that nothing."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight="balanced:0.5").train()
    torch.nn.init.zeros_(model.mixing_head.layers[-1].weight)
    output = model(**inputs_of(model, 9, 4), loss_only=True)
    assert output.policy_gradient == 0
    assert torch.equal(output.loss, output.nll)


def test_rewards_that_hardly_differ_are_not_blown_up() -> None:
    weights = PolicyWeight.parse("balanced:0.5").balance(torch.tensor([1.0, 1.0]), torch.tensor([1e-4, 1e-12]))
    assert weights.tolist() == pytest.approx([50, HIGHEST_BALANCED_WEIGHT])


def test_evaluation_weighs_no_policy() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight="balanced:0.5").eval()
    output = model(**inputs_of(model, 9, 4))
    assert torch.equal(output.loss, output.nll)


@pytest.mark.parametrize(("setting", "value"), [(0, 0), ("30", 30), ("1e6", 1e6), (2.5, 2.5)])
def test_a_fixed_weight_is_a_number_of_at_least_0(setting: float | str, value: float) -> None:
    assert PolicyWeight.parse(setting) == PolicyWeight(value)


@pytest.mark.parametrize("setting", ["balanced:0.1", "balanced:0.123456789", "balanced:1e-07"])
def test_a_balanced_weight_is_kept_as_it_was_given(setting: str) -> None:
    assert PolicyWeight.parse(setting).setting == setting


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "balanced",
        "balanced:",
        "balanced:x",
        "balanced:-1",
        "balance:1",
        -1,
        "-1",
        "nan",
        "inf",
        True,
        None,
        [1],
        10**400,
    ],
)
def test_what_is_no_weight_is_refused(setting: object) -> None:
    with pytest.raises(SettingsError, match=r"policy_weight is .*give a number of at least 0, or balanced:R"):
        PolicyWeight.parse(setting)
