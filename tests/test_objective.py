"""The policy term's weight, balanced against the nll's gradient, beside gradients made by autograd."""

import copy

import pytest
import torch
from torch import Tensor

from quietstar import QuietStarForCausalLM, learn, objective
from quietstar.learn import HIGHEST_BALANCED_WEIGHT, IGNORED, Counts, Labels
from quietstar.output import QuietStarOutput
from tests.learn.test_labels import look_ahead
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
        patch.setattr("quietstar.taught.fill_in_losses", catch)
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


def counted_columns(inputs: dict[str, Tensor], P: int = 2) -> Tensor:
    """[B, P, S] bool: columns with all their labels."""
    everywhere = torch.ones_like(inputs["labels"], dtype=torch.bool)
    labels = Labels.look_ahead(inputs["labels"], everywhere, 2, inputs["attention_mask"])
    return labels.complete[:, None].expand(-1, P, -1)


def test_thoughts_with_one_reward_are_not_reinforced() -> None:
    """A shut mixing head rewards all alike: nothing is divided by that nothing."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight="balanced:0.5").train()
    torch.nn.init.zeros_(model.mixing_head.layers[-1].weight)
    output = model(**inputs_of(model, 9, 4), loss_only=True)
    assert output.policy_gradient == 0
    assert torch.equal(output.loss, output.nll)


def test_evaluation_weighs_no_policy() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight="balanced:0.5").eval()
    output = model(**inputs_of(model, 9, 4))
    assert torch.equal(output.loss, output.nll)


@pytest.mark.parametrize(("policy_weight", "loss_only"), [(1.0, False), ("balanced:0.5", True)])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in parts"])
def test_batches_that_share_their_counts_add_up(
    checkpointing: bool, policy_weight: float | str, loss_only: bool
) -> None:
    """Loss and gradients of one batch of four rows are the sums of those of two batches, unequal in labels."""
    model = tiny_model(n_ahead=4, n_ahead_talk=3, n_passes=2, policy_weight=policy_weight).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = texts(9, 4, 2, 7)
    inputs["labels"][0, 3:5] = IGNORED
    inputs["labels"][3] = IGNORED
    inputs["thoughts"] = random_thoughts(model, 4, 9, P=2)
    parameters = list(model.parameters())

    def run(part: slice, counts: Counts | None = None) -> tuple[Tensor, list[Tensor]]:
        batch = {name: value[part] for name, value in inputs.items()}
        loss = model(**batch, counts=counts, loss_only=loss_only).loss
        return loss.detach(), torch.autograd.grad(loss, parameters)

    def count(part: slice) -> Counts:
        mask = inputs["attention_mask"][part]
        return look_ahead(inputs["labels"][part], mask.bool(), 3, mask).count()

    counts = count(slice(0, 1)) + count(slice(1, 4))
    whole, gradients = run(slice(0, 4))
    first, second = run(slice(0, 1), counts), run(slice(1, 4), counts)
    torch.testing.assert_close(first[0] + second[0], whole)
    for one, other, expected in zip(first[1], second[1], gradients, strict=True):
        torch.testing.assert_close(one + other, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("S", [1, 2, 3])
def test_texts_shorter_than_the_talk(S: int) -> None:
    """Predictions past the end have no label; no column has all of its own."""
    model = tiny_model(n_ahead=4, n_ahead_talk=4, n_passes=2).train()
    output = model(**texts(S))
    assert output.talk_nll.shape == (1, 2, S, 4)
    has_label = torch.tensor([[i + 1 + k < S for k in range(4)] for i in range(S)])
    assert torch.equal(output.talk_nll[0, 0] != 0, has_label)
    assert output.policy_loss == 0
    assert torch.isfinite(output.loss)
    if S > 1:
        output.loss.backward()


def policy_gradients(model: QuietStarForCausalLM, output: QuietStarOutput) -> dict[str, Tensor | None]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(output.policy_loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in parts"])
def test_where_the_policy_term_reaches(checkpointing: bool) -> None:
    """The whole base model, the start embedding and the rows of tokens; neither mixing head nor end embedding."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}
    thoughts = torch.tensor([[[[20, 21]] * 4, [[30, 31]] * 4]])
    output = model(**inputs, thoughts=thoughts)
    gradients = policy_gradients(model, output)
    for name, gradient in gradients.items():
        reached = gradient is not None and bool((gradient != 0).any())
        outside = name.startswith("mixing_head") or name == "thought_embeddings.end_embedding"
        assert reached != outside, name
    rows = gradients["base_lm.model.embed_tokens.weight"].abs().amax(1)
    chosen = output.advantage[0, :, :2].amax(1) > 0  # passes that have an advantage somewhere
    assert chosen.any()
    for p, first in enumerate((20, 30)):
        # the first token of a thought is read where the second is drawn; the last is read by nobody
        assert bool(rows[first] > 0) == bool(chosen[p])
        assert rows[first + 1] == 0
    assert (rows[[5, 6]] > 0).any()
    assert (rows[[7, 8, 40]] == 0).all(), "columns 0 and 1 alone have all their labels"


def test_no_gradient_passes_through_the_advantage() -> None:
    """Twice the advantage is twice the gradient: it is a number."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2)
    inputs = texts(5)
    output = model(**inputs, thoughts=random_thoughts(model, 1, 5, P=2))
    assert not output.reward.requires_grad
    assert not output.advantage.requires_grad
    assert output.thought_logprob.requires_grad


@pytest.mark.parametrize("nll_weight", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("kind", learn.ADVANTAGES)
def test_every_objective_has_the_gradient_of_its_formula(kind: str, nll_weight: float) -> None:
    """Computed along with the loss, by autograd, and by the formula from what forward returns."""
    settings = dict(n_ahead=4, n_ahead_talk=2, n_passes=3, policy_weight=2.0, advantage=kind, nll_weight=nll_weight)
    model = tiny_model(**settings).train()
    inputs = texts(9, 4) | {"thoughts": random_thoughts(model, 2, 9, P=3)}
    output = model(**inputs)
    assert (output.advantage < 0).any() == (kind != "positive")
    counted = counted_columns(inputs, P=3)
    by_formula = nll_weight * output.nll - 2.0 * (output.advantage[..., None] * output.thought_logprob)[counted].mean()
    torch.testing.assert_close(output.loss, by_formula)
    eager = model(**inputs, loss_only=True)
    torch.testing.assert_close(eager.loss, output.loss)
    parameters = [p for n, p in model.named_parameters() if nll_weight or not n.startswith("mixing_head")]
    expected = torch.autograd.grad(by_formula, parameters, retain_graph=True, allow_unused=True)
    for loss in (output.loss, eager.loss):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for (name, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=False):
            assert (ours is None) == (theirs is None), name
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()), msg=name)


@torch.no_grad()
def nudged(model: QuietStarForCausalLM) -> QuietStarForCausalLM:
    """A copy whose weights are a little different, as before a few steps."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return other


@pytest.mark.parametrize("policy_weight", [2.0, "balanced:0.5"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("first_epoch", [True, False])
def test_a_rollout_has_the_gradient_of_its_formula(
    first_epoch: bool, kl_weight: float, policy_weight: float | str
) -> None:
    """Of a reference and of an earlier policy epoch; loss and gradients with the loss, by autograd, by formula."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=3, policy_weight=policy_weight, advantage="leave_one_out")
    inputs = texts(9, 4) | {"thoughts": random_thoughts(model.train(), 2, 9, P=3)}
    reference = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=3, seed=5)
    seen = reference(**inputs)
    before = {"reference_nll": seen.base_nll.detach()}
    before |= {"reference_logprob": seen.thought_logprob.detach()} if kl_weight else {}
    with torch.no_grad():
        earlier = nudged(model)(**inputs)
    if not first_epoch:
        before |= {"logprob": earlier.thought_logprob, "advantage": earlier.advantage}
    rollout = learn.Rollout(kl_weight=kl_weight, clip_ratio=0.2, **before)
    output, eager = (model(**inputs, rollout=rollout, loss_only=loss_only) for loss_only in (False, True))

    counted = counted_columns(inputs, P=3)
    advantage = learn.advantage(output.reward, "leave_one_out") if first_epoch else earlier.advantage
    torch.testing.assert_close(output.advantage, advantage)
    policy = learn.policy_terms(output.thought_logprob, advantage, rollout)[counted].mean()
    torch.testing.assert_close(output.policy_loss, policy)
    parameters = list(model.parameters())
    if policy_weight == 2.0:
        by_formula = output.nll + 2.0 * policy
        torch.testing.assert_close(output.loss, by_formula)
        expected = torch.autograd.grad(by_formula, parameters, retain_graph=True)
    else:
        expected = torch.autograd.grad(output.loss, parameters, retain_graph=True)
    torch.testing.assert_close(eager.loss, output.loss)
    for loss in (output.loss, eager.loss):
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        for (name, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()), msg=name)


def test_rewards_compare_with_the_reference() -> None:
    """Thoughts are worth as much more as the reference's base pass predicts worse; a mixed state is the model's own."""
    model = tiny_model(n_ahead=4, n_ahead_talk=1, n_passes=2).train()
    inputs = texts(9, 4) | {"thoughts": random_thoughts(model, 2, 9, P=2)}
    alone = model(**inputs)
    rollout = learn.Rollout(reference_nll=alone.base_nll.detach() + 0.5)
    compared = model(**inputs, rollout=rollout)
    where = Labels.look_ahead(inputs["labels"], torch.ones_like(inputs["labels"]).bool(), 1).complete[:, None]
    torch.testing.assert_close(compared.reward, torch.where(where, alone.reward + 0.5, 0.0))
    assert torch.equal(compared.base_nll, alone.base_nll)


def test_evaluation_weighs_the_nll_once() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight=1.0, nll_weight=0.0).eval()
    output = model(**texts(9, 4))
    assert torch.equal(output.loss, output.nll)


@pytest.mark.parametrize("loss_only", [True, False], ids=["gradients with the loss", "by autograd"])
@pytest.mark.parametrize("winner", ["none", "one"])
def test_a_balanced_weight_counts_the_decision_to_end(winner: str, loss_only: bool) -> None:
    """Two thoughts, one of no token and one of one: whichever wins, the end head learns, at the balance asked for."""
    found = {}
    for policy_weight in (1.0, "balanced:0.5"):
        model = tiny_model(n_ahead=4, n_ahead_talk=2, learn_to_end=True, policy_weight=policy_weight).train()
        inputs = texts(6)
        inputs["think_at"] = torch.zeros_like(inputs["input_ids"]).index_fill(1, torch.tensor([2]), 1)
        inputs["thoughts"] = torch.tensor([[-1, -1], [7, -1]])[None, :, None].expand(1, 2, 6, 2)
        advantage = torch.zeros(1, 2, 6)
        advantage[0, int(winner == "one"), 2] = 0.4
        output = model(**inputs, loss_only=loss_only, rollout=learn.Rollout(advantage=advantage))
        output.loss.backward()
        found[policy_weight] = model.end_head.layer.bias.grad.clone(), output
    (at_1, _), (balanced, output) = found.values()
    assert at_1.abs() > 1e-4
    assert torch.sign(at_1) == (-1 if winner == "none" else 1), "a larger logit ends more thoughts"
    assert torch.sign(balanced) == torch.sign(at_1)
    if loss_only:
        assert float(output.policy_gradient / output.nll_gradient) == pytest.approx(0.5**2, rel=1e-3)


def test_what_is_not_reinforced_is_not_scored() -> None:
    """Neither its tokens nor its end."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, learn_to_end=True, policy_weight=1.0).train()
    inputs = texts(6)
    inputs["thoughts"] = torch.tensor([[5, -1], [7, 8]])[None, :, None].expand(1, 2, 6, 2)
    advantage = torch.zeros(1, 2, 6)
    advantage[0, 0] = 0.4
    output = model(**inputs, loss_only=True, rollout=learn.Rollout(advantage=advantage))
    assert (output.thought_logprob[0, 0, :4] != 0).all()
    assert (output.thought_logprob[0, 1] == 0).all()
