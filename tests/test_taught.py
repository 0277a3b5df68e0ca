"""The losses of a lesson are those of whole predictions, over the labels of ragged rows; so are their gradients."""

import math

import pytest
import torch
from torch import Tensor

from quietstar.base.divergence import Likeliest, Spoken
from quietstar.learn import IGNORED, Rollout
from quietstar.learn.lesson import Lesson
from quietstar.model import QuietStarForCausalLM
from tests.tiny import texts, tiny_model

B, S = 3, 8


def student() -> QuietStarForCausalLM:
    return tiny_model(n_ahead=3, n_ahead_talk=1).train()


def batch() -> dict[str, Tensor]:
    """Rows of 8, 3 and 5 tokens; one label of the first is left out."""
    found = texts(S, 3, 5)
    found["labels"] = found["labels"].clone()
    found["labels"][0, 4] = IGNORED
    return found


def labelled(inputs: dict[str, Tensor]) -> Tensor:
    """[B, S]: where the next token has a label."""
    ahead = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
    return ahead != IGNORED


def taught(objective: str, k: int | None = None) -> tuple[Lesson, Tensor]:
    """A lesson of random states by another head, and its log-probabilities [B, S, V]."""
    teacher = tiny_model(n_ahead=3)
    head, P = teacher.thinker().trunk.head, 2
    hidden = torch.randn(B, P, S, 32, generator=torch.Generator().manual_seed(5))
    logp = (hidden @ head.weight.T).log_softmax(-1).logsumexp(1).detach() - math.log(P)
    if k is None:
        return Lesson(objective=objective, head=head, hidden=hidden), logp
    said = Likeliest.of(Spoken(head, hidden.transpose(0, 1).flatten(1, 2)), k)
    lesson = Lesson(
        objective=objective,
        tokens=said.tokens.view(B, S, k),
        logprob=said.logprob.view(B, S, k),
        rest=said.rest.view(B, S),
    )
    return lesson, logp


def run(model: QuietStarForCausalLM, inputs: dict[str, Tensor], lesson: Lesson, **more: object) -> Tensor:
    where = torch.zeros_like(inputs["labels"])
    loss: Tensor = model(**inputs, think_at=where, loss_only=True, rollout=Rollout(lesson=lesson), **more).loss
    return loss


@pytest.mark.parametrize("objective", ["kl", "reverse_kl"])
def test_the_loss_is_the_mean_divergence_over_labels(objective: str) -> None:
    model, inputs = student(), batch()
    lesson, logp = taught(objective)
    loss = run(model, inputs, lesson)
    logq = model.base_lm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.log_softmax(-1)
    a, b = (logp, logq) if objective == "kl" else (logq, logp)
    expected = (a.exp() * (a - b)).sum(-1)[labelled(inputs)].mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    parameters = [each for each in model.base_lm.parameters() if each.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_a_target_that_is_off_by_one_is_noticed() -> None:
    model, inputs = student(), batch()
    lesson, _ = taught("kl")
    assert lesson.hidden is not None
    off = Lesson(objective="kl", head=lesson.head, hidden=lesson.hidden.roll(1, 2))
    assert abs(float((run(model, inputs, lesson) - run(model, inputs, off)).detach())) > 0.01


def test_likeliest_tokens_are_a_lower_bound_that_more_tokens_raise() -> None:
    model, inputs = student(), batch()
    whole = float(run(model, inputs, taught("kl")[0]).detach())
    bounds = [float(run(model, inputs, taught("kl", k)[0]).detach()) for k in (2, 8, 60)]
    assert bounds == sorted(bounds)
    assert bounds[0] < whole - 0.01
    assert bounds[-1] == pytest.approx(whole, abs=1e-4)


def test_fast_is_the_text_with_more_weight_where_the_student_is_better() -> None:
    model, inputs = student(), batch()
    where = labelled(inputs)
    nll = model(**inputs, think_at=torch.zeros_like(inputs["labels"])).base_nll.detach()
    teacher_nll = nll + torch.tensor([[-0.5], [0.25], [1.0]])
    loss = run(model, inputs, Lesson(objective="fast", nll=teacher_nll * where, reward_weight=2.0))
    expected = (nll * torch.tensor([[1.0], [1.5], [3.0]]))[where].mean()
    torch.testing.assert_close(loss, expected)
    plain = model(**inputs, think_at=torch.zeros_like(inputs["labels"])).base_nll
    weight = model.base_lm.model.layers[0].mlp.up_proj.weight
    (ours,) = torch.autograd.grad(loss, weight)
    (theirs,) = torch.autograd.grad((plain * torch.tensor([[1.0], [1.5], [3.0]]))[where].mean(), weight)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_pieces_of_a_batch_add_up() -> None:
    """As for rows that do not fit into memory at once, and for batches of one step."""
    model, inputs = student(), batch()
    lesson, _ = taught("kl")
    whole = run(model, inputs, lesson)
    labels = labelled(inputs).sum()
    counts = model(**inputs, think_at=torch.zeros_like(inputs["labels"]))  # runs without a lesson as ever
    assert counts.loss.isfinite()
    from quietstar.runs.processes import ALONE
    from quietstar.training.tally import count_labels

    step = count_labels([inputs | {"think_at": torch.zeros_like(inputs["labels"])}], 1, ALONE)
    assert int(step.base) == int(labels)
    pieces = []
    for rows in (slice(0, 1), slice(1, 3)):
        some = {name: value[rows] for name, value in inputs.items()}
        pieces.append(run(model, some, Rollout(lesson=lesson)[rows].lesson, counts=step))
    torch.testing.assert_close(sum(pieces), whole, atol=1e-6, rtol=1e-5)
