"""Where thoughts are written and what they change: everywhere else the base model speaks."""

import pytest
import torch
from torch import Tensor

from quietstar.output import QuietStarOutput
from tests.tiny import FAMILIES, random_thoughts, texts, tiny_model


def unlabelled(*lengths: int) -> dict[str, Tensor]:
    return {name: value for name, value in texts(*lengths).items() if name != "labels"}


@pytest.mark.parametrize("mode", ["without gradient", "cached", "in parts"])
def test_think_at_restricts(mode: str) -> None:
    """Where no thought grows, logits are the base model's; where one does, nothing else matters."""
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2)
    inputs = texts(8, 5, 6, left=True)
    inputs["thoughts"] = random_thoughts(model, 3, 8, P=2)
    chosen = torch.zeros(3, 8, dtype=torch.bool)
    chosen[0, [0, 3, 4]] = True
    chosen[1, [4]] = True  # the third row thinks nowhere
    if mode == "in parts":
        model.train()
        model.gradient_checkpointing_enable()
    with torch.set_grad_enabled(mode != "without gradient"):
        everywhere, some = model(**inputs), model(**inputs, think_at=chosen)
    own = model.base_lm(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(some.logits[chosen], everywhere.logits[chosen], **close)
    elsewhere = inputs["attention_mask"].bool() & ~chosen
    torch.testing.assert_close(some.logits[elsewhere], own[elsewhere], **close)
    assert (everywhere.logits - some.logits)[elsewhere].abs().max() > 1
    torch.testing.assert_close(some.base_nll, everywhere.base_nll, **close)
    for name in ("talk_nll", "reward", "mixing_weight", "thought_logprob", "advantage"):
        ours, theirs = getattr(some, name).transpose(1, 2), getattr(everywhere, name).transpose(1, 2)
        torch.testing.assert_close(ours[chosen], theirs[chosen], **close)
        assert (ours[~chosen] == 0).all(), name


@pytest.mark.parametrize("mode", ["without gradient", "cached", "in parts"])
@pytest.mark.parametrize("given", [False, True], ids=["sampled", "given"])
def test_thinking_nowhere_is_the_base_model(mode: str, given: bool) -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2)
    inputs = texts(6, 3)
    thoughts = random_thoughts(model, 2, 6) if given else None
    if mode == "in parts":
        model.train()
        model.gradient_checkpointing_enable()
    with torch.set_grad_enabled(mode != "without gradient"):
        output = model(**inputs, thoughts=thoughts, think_at=torch.zeros(2, 6))
    real = inputs["attention_mask"].bool()
    own = model.base_lm(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(output.logits[real], own[real], rtol=1e-4, atol=1e-3)
    assert output.policy_loss == 0
    expected = model.config.base_loss_weight * output.base_nll.sum() / (5 + 2)
    torch.testing.assert_close(output.nll, expected)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4, 5])], ids=["last", "last three", "these"])
def test_logits_to_keep(keep: int | Tensor) -> None:
    """Thoughts are written only where a logit is kept."""
    model = tiny_model(n_ahead=4)
    inputs = unlabelled(6, 6)
    chosen = list(range(6))[-keep:] if isinstance(keep, int) else keep.tolist()
    with torch.no_grad():
        everything, some = model(**inputs), model(**inputs, logits_to_keep=keep)
    torch.testing.assert_close(some.logits, everything.logits[:, chosen], rtol=1e-4, atol=1e-3)
    wrote = (some.mixing_weight != 0).any(-1)[:, 0]
    assert wrote.nonzero()[:, 1].unique().tolist() == chosen


@pytest.mark.parametrize("think", ["always", "never", "entropy:2", "margin:0.3", "every:2", "mixing_head:0"])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_the_end_of_a_text_is_predicted_as_over_a_grid(family: str, think: str) -> None:
    """Decoding needs no grid: one more kept position asks for one, and says the same."""
    model, inputs = tiny_model(family, n_ahead=5), texts(9, 4, 6, left=True)
    del inputs["labels"]

    def at_the_end(n_kept: int) -> QuietStarOutput:
        with torch.no_grad():
            return model(**inputs, logits_to_keep=n_kept, think=think)

    decoded, over_grid = at_the_end(1), at_the_end(2)
    torch.testing.assert_close(decoded.logits[:, -1], over_grid.logits[:, -1], rtol=1e-4, atol=1e-3)
    assert torch.equal(decoded.thoughts[:, :, -1], over_grid.thoughts[:, :, -1])
    torch.testing.assert_close(decoded.mixing_weight[:, :, -1], over_grid.mixing_weight[:, :, -1], rtol=1e-3, atol=1e-3)
    assert (decoded.mixing_weight[:, :, :-1] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_decides_before_decoding_as_it_does_over_a_grid(family: str) -> None:
    """Rows of one batch may differ, and a row that does not think predicts as the base model does."""
    model, inputs = tiny_model(family, n_ahead=4), texts(9, 9, 9)
    del inputs["labels"]
    with torch.no_grad():
        base = model.base_lm(**inputs).logits[:, -1]
        nats = torch.distributions.Categorical(logits=base.float()).entropy()
        least = float(nats.sort().values[1:].mean())  # between the second row and the third
        output = model(**inputs, logits_to_keep=1, think=f"entropy:{least}")
    thinks = nats >= least
    assert 0 < thinks.sum() < 3
    torch.testing.assert_close(output.logits[~thinks, -1], base[~thinks], rtol=1e-4, atol=1e-3)
    assert torch.equal(output.mixing_weight[:, 0, -1, 0] != 0, thinks)
