"""The mixing head, the thought embeddings, and what mixing means."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from quietstar import MixingHead, QuietStarForCausalLM, ThoughtEmbeddings, config
from quietstar.heads import MIXING, mix
from tests.tiny import loud, texts, tiny_model


def states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_mixing_head_is_the_papers() -> None:
    D = 8
    head = MixingHead(D)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    assert shapes == {
        "layers.0.weight": (D, 2 * D),
        "layers.0.bias": (D,),
        "layers.2.weight": (D, D),
        "layers.2.bias": (D,),
        "layers.4.weight": (1, D),
    }
    loud(head)
    without, after = states(3, D), states(3, D, seed=1)
    hidden = torch.cat([without, after], -1)
    for index in (0, 2):
        hidden = (hidden @ head.layers[index].weight.T + head.layers[index].bias).clamp(min=0)
    torch.testing.assert_close(head(without, after), hidden @ head.layers[4].weight.T)
    assert not torch.allclose(head(without, after), head(after, without)), "the two states have their places"


def test_a_fresh_mixing_head_gives_the_thought_no_weight() -> None:
    head = MixingHead(8)
    assert (head(states(5, 8), states(5, 8, seed=1)) == 0).all()
    head(states(5, 8), states(5, 8, seed=1)).sum().backward()
    assert head.layers[-1].weight.grad.abs().max() > 0, "it can learn to"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_float32_whatever_the_states_are(dtype: torch.dtype) -> None:
    head = MixingHead(8)
    loud(head)
    assert head(states(2, 8).to(dtype), states(2, 8, seed=1).to(dtype)).dtype == torch.float32


def test_mixing_goes_from_one_state_to_the_other_and_beyond() -> None:
    without, after = states(4, 8), states(4, 8, seed=1)
    weight = torch.tensor([[0.0], [1.0], [0.25], [-2.0]])
    mixed = mix(without, after, weight)
    assert torch.equal(mixed[0], without[0])
    assert torch.equal(mixed[1], after[1])
    torch.testing.assert_close(mixed[2], 0.75 * without[2] + 0.25 * after[2])
    torch.testing.assert_close(mixed[3], 3 * without[3] - 2 * after[3])


def test_mixing_at_weight_0_changes_no_bit_in_half_precision() -> None:
    without, after = states(4, 8).bfloat16(), states(4, 8, seed=1).bfloat16()
    mixed = mix(without, after, torch.zeros(4, 1))
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, without)


def test_mixing_states_mixes_predictions_of_a_linear_head() -> None:
    """method.md: the same as mixing logits, or log-probabilities after normalisation."""
    without, after, weight = states(4, 8), states(4, 8, seed=1), states(4, 1, seed=2)
    table = states(8, 11, seed=3)
    logits = (1 - weight) * (without @ table) + weight * (after @ table)
    torch.testing.assert_close(mix(without, after, weight) @ table, logits, rtol=1e-4, atol=1e-5)
    logprobs = (1 - weight) * (without @ table).log_softmax(-1) + weight * (after @ table).log_softmax(-1)
    torch.testing.assert_close(logprobs.log_softmax(-1), logits.log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_thought_embeddings_are_fed_at_scale() -> None:
    embeddings = ThoughtEmbeddings(8, scale=100.0)
    vector = states(8)
    embeddings.begin_as(vector)
    for name in ("start", "end"):
        torch.testing.assert_close(getattr(embeddings, name), vector)
        torch.testing.assert_close(getattr(embeddings, f"{name}_embedding").detach(), vector / 100)
    with torch.no_grad():
        embeddings.start_embedding += 0.01
    torch.testing.assert_close(embeddings.start, vector + 1)
    torch.testing.assert_close(embeddings.end, vector)
    embeddings.start.sum().backward()
    assert (embeddings.start_embedding.grad == 100).all()
    assert embeddings.end_embedding.grad is None


def test_every_kind_of_mixing_can_be_made() -> None:
    assert tuple(MIXING) == config.MIXING


def test_without_a_mixing_head_the_thought_alone_predicts(tmp_path: Path) -> None:
    """In training, in a grid, in decoding, and after loading."""
    settings = dict(n_ahead=4, n_ahead_talk=2, n_passes=2)
    model, mixed = tiny_model(mixing="thought", **settings), tiny_model(**settings)
    assert list(model.mixing_head.parameters()) == []
    inputs = texts(7, 4)
    thought = torch.randint(61, (2, 2, 7, 2), generator=torch.Generator().manual_seed(0))
    output, other = model(**inputs, thoughts=thought), mixed(**inputs, thoughts=thought)
    assert torch.equal(output.base_nll, other.base_nll)
    assert torch.equal(output.mixing_weight != 0, output.talk_nll != 0)
    assert output.mixing_weight.unique().tolist() == [0, 1]
    mixed.mixing_head = model.mixing_head
    torch.testing.assert_close(output.talk_nll, mixed(**inputs, thoughts=thought).talk_nll)
    assert not torch.allclose(output.talk_nll, other.talk_nll, atol=0.1)

    model.save_pretrained(tmp_path)
    again = QuietStarForCausalLM.from_pretrained(tmp_path)
    ids = inputs["input_ids"][:1]
    grown = model.generate(ids, max_new_tokens=4, do_sample=False, output_thoughts=True)
    assert torch.equal(again.generate(ids, max_new_tokens=4, do_sample=False), grown.sequences)
    assert torch.equal(grown.thoughts.mixed.ids, grown.thoughts.thought_alone.ids)
    with torch.no_grad():
        logits = again(grown.sequences).logits
    assert logits[0, 6:-1].argmax(-1).tolist() == grown.sequences[0, 7:].tolist()
    assert not again(**inputs).loss.isnan()


def test_it_trains_without_a_mixing_head() -> None:
    model = tiny_model(mixing="thought", n_ahead=4, n_ahead_talk=2, n_passes=2, policy_weight=1.0, nll_weight=0.0)
    model.train()(**texts(7, 4), loss_only=True).loss.backward()
    assert model.thought_embeddings.start_embedding.grad.abs().max() > 0
