"""Parity with the released code: per-token losses, mixing weights, rewards, logits and all gradients."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden import FOLDER, Case, load_case, original_losses, original_names

LOSS = dict(rtol=1e-5, atol=1e-6)
REWARD = dict(rtol=0, atol=1e-4)

TRAINING = ["train_4_2_2", "train_4_2_2_firstrun", "train_6_3_1_mask", "train_8_4_2"]
EVALUATION = ["eval_4_2_2", "eval_8_4_2"]


def test_every_recorded_case_is_compared() -> None:
    """A file that is missing, or one that nobody reads, does not go unnoticed."""
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted([*TRAINING, *EVALUATION, "infer_8"])


def rows(tensor: Tensor) -> Tensor:
    """[B, P, S, ...] -> [R, S, ...], example-major as recorded."""
    return tensor.flatten(0, 1)


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in-parts"])
def test_training_case(name: str, checkpointing: bool, tmp_path: Path) -> None:
    case = load_case(name)
    model = case.load(tmp_path).train()
    assert model.config.policy_weight == case.policy_weight == 1e6
    if checkpointing:
        model.gradient_checkpointing_enable()
    output = model(**case.inputs())
    recorded, n, P = case.tensors, case.settings["n_ahead"], case.n_passes

    torch.testing.assert_close(output.base_nll[:, :-1].repeat_interleave(P, 0), recorded["unreduced_loss_0"], **LOSS)
    for k in range(case.n_ahead_talk):
        expected = recorded[f"unreduced_loss_{n - 1 + k}"]
        torch.testing.assert_close(rows(output.talk_nll)[:, : expected.shape[1], k], expected, **LOSS)
        labelled = expected != 0
        weights = recorded[f"mix_weight_{n - 1 + k}"][..., 0][:, : expected.shape[1]]
        ours = rows(output.mixing_weight)[:, : expected.shape[1], k]
        torch.testing.assert_close(ours[labelled], weights[labelled], **REWARD)
        assert (ours[~labelled] == 0).all()
    L = recorded["policy_reward"].shape[1]
    torch.testing.assert_close(rows(output.reward)[:, :L], recorded["policy_reward"], **REWARD)
    torch.testing.assert_close(rows(output.advantage)[:, :L], recorded["centered_clamped_reward"], **REWARD)
    has_label = rows(output.talk_nll)[:, :-1, 0] != 0
    for index, step in enumerate(case.settings["sampled_at_steps"]):
        ours = rows(output.thought_logprob)[:, :-1, index]
        expected = recorded[f"action_loglik_of_step_{step}"]
        torch.testing.assert_close(ours[has_label], expected[has_label], **REWARD)

    losses = original_losses(output, case)
    for loss_name, ours in losses.items():
        torch.testing.assert_close(ours.detach(), recorded[loss_name], rtol=1e-5, atol=1e-6)
    check_gradients(case, model, losses)


def check_gradients(case: Case, model: torch.nn.Module, losses: dict[str, Tensor]) -> None:
    parameters = original_names(model)
    for prefix, loss in (("grad_nll", losses["nll_loss"]), ("grad", losses["loss"])):
        expected = {n.removeprefix(prefix + "."): t for n, t in case.tensors.items() if n.startswith(prefix + ".")}
        if not expected:
            continue
        assert expected.keys() == parameters.keys()
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            ours = torch.zeros_like(parameter) if gradient is None else gradient
            theirs = expected[name]
            if theirs.shape != ours.shape:  # row 1 of the thought embeddings is unused
                assert (theirs[1] == 0).all()
                theirs = theirs[0]
            difference = (ours - theirs).abs().max()
            assert difference <= 1e-4 * theirs.abs().max(), f"{prefix} of {name}: {difference} of {theirs.abs().max()}"


@pytest.mark.parametrize("name", EVALUATION)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_evaluation_case(name: str, with_gradient: bool, tmp_path: Path) -> None:
    case = load_case(name)
    model = case.load(tmp_path)
    inputs = case.inputs()
    with torch.set_grad_enabled(with_gradient):
        output = model(**inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(output.logits[real].detach(), case.tensors["logits"][real], **REWARD)
    expected = torch.tensor(case.settings["nll_loss_with_labels"])
    torch.testing.assert_close(output.nll.detach(), expected, rtol=1e-5, atol=1e-6)
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    output = model(**without_labels)
    torch.testing.assert_close(output.logits[real].detach(), case.tensors["logits"][real], **REWARD)
    weights = case.tensors["mix_weight"][..., 0]
    torch.testing.assert_close(output.mixing_weight[:, 0, :, 0][real].detach(), weights[real], **REWARD)


def test_inference_case(tmp_path: Path) -> None:
    """The released `infer` feeds vocabulary rows where we feed the learned vectors: give it the same."""
    case = load_case("infer_8")
    model = case.load(tmp_path)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for side in ("start", "end"):
            vector = table[case.settings[f"{side}_token_id"]]
            getattr(model.thought_embeddings, f"{side}_embedding").copy_(vector / model.config.embedding_scale)
    inputs = case.inputs()
    S = inputs["input_ids"].shape[1]
    thoughts = torch.zeros(1, 1, S, case.n_ahead - 2, dtype=torch.long)
    thoughts[0, 0, -1] = case.tensors["thought"].long()[0]
    output = model(**inputs, thoughts=thoughts, logits_to_keep=1)
    torch.testing.assert_close(output.logits.detach(), case.tensors["logits"], **REWARD)
    torch.testing.assert_close(output.mixing_weight[0, 0, -1].detach(), case.tensors["mix_weight"][0, 0], **REWARD)
