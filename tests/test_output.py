"""What a forward pass returns: shapes, zeros where nothing counts, and the cache by both its names."""

import copy

import pytest
import torch
from torch import Tensor

from quietstar.errors import SettingsError
from quietstar.output import CACHE
from tests.tiny import VOCABULARY, texts, tiny_model


def unlabelled(*lengths: int) -> dict[str, Tensor]:
    return {name: value for name, value in texts(*lengths).items() if name != "labels"}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_names_and_shapes(training: bool) -> None:
    B, S, K, M, V = 2, 7, 3, 4, VOCABULARY
    model = tiny_model(n_ahead=5, n_ahead_talk=4, n_passes=3).train(training)
    P = 3 if training else 1
    output = model(**texts(7, 4))
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    assert shapes == {
        "loss": (),
        "logits": (B, S, V),
        "nll": (),
        "policy_loss": (),
        "base_nll": (B, S),
        "talk_nll": (B, P, S, M),
        "mixing_weight": (B, P, S, M),
        "think_at": (B, S),
        "thought_logprob": (B, P, S, K),
        "reward": (B, P, S),
        "advantage": (B, P, S),
        "thoughts": (B, P, S, K),
        **({"drawn_logprob": (B, P, S, K)} if training else {}),
    }
    without_labels = model(**unlabelled(7, 4))
    assert set(without_labels) == {"logits", "mixing_weight", "think_at", "thoughts", CACHE}
    assert without_labels.mixing_weight.shape == (B, 1, S, 1)
    assert without_labels.thoughts.shape == (B, 1, S, K)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_what_has_no_label_is_zero(left: bool) -> None:
    """And what has one is not."""
    model = tiny_model(n_ahead=4, n_ahead_talk=3, n_passes=2)
    inputs = texts(8, 4, 6, left=left)
    inputs["labels"][2] = -100
    output = model(**inputs, n_passes=2)
    labelled = torch.zeros(3, 8, 3, dtype=torch.bool)
    for b in range(3):
        for i in range(8):
            for k in range(3):
                inside = i + 1 + k < 8 and inputs["attention_mask"][b, i]
                labelled[b, i, k] = inside and inputs["labels"][b, i + 1 + k] != -100
    for p in range(2):
        assert torch.equal(output.talk_nll[:, p] != 0, labelled)
        assert torch.equal(output.mixing_weight[:, p] != 0, labelled)
        assert torch.equal(output.reward[:, p] != 0, labelled.any(-1))
        assert torch.equal(output.thought_logprob[:, p] != 0, labelled.any(-1, keepdim=True).expand(-1, -1, 2))
    assert torch.equal(output.base_nll != 0, labelled[..., 0])
    assert (output.advantage[~labelled.any(-1)[:, None].expand_as(output.advantage)] == 0).all()


def test_a_cache_is_returned_where_asked() -> None:
    model = tiny_model(n_ahead=4)
    assert model(**unlabelled(5)).cache.get_seq_length() == 5
    assert model(**unlabelled(5), use_cache=False).cache is None
    assert model(**texts(5)).cache is None
    assert model(**texts(5), use_cache=True).cache.get_seq_length() == 5


@torch.no_grad()
def test_a_cache_has_two_names() -> None:
    """Its older one and its newer one, given and returned, whichever transformers uses."""
    model, tokens = tiny_model(n_ahead=4).eval(), unlabelled(5)["input_ids"]
    first = model(tokens[:, :4])
    assert first.cache is first.past_key_values is first[CACHE]
    by_name = {
        name: model(tokens[:, 4:], **{name: copy.deepcopy(first.cache)}).logits for name in ("cache", "past_key_values")
    }
    assert torch.equal(by_name["cache"], by_name["past_key_values"])
    assert not torch.allclose(by_name["cache"], model(tokens[:, 4:]).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("thought", "message"),
    [
        ([5, -1, 7], "a token after -1"),
        ([-1, 5, 7], "a token after -1"),
        ([5, -2, 7], r"thoughts hold -2; give token ids from 0 to \d+, and -1 in every place after its last token"),
        ([5, VOCABULARY, 7], f"thoughts hold {VOCABULARY}; give token ids from 0 to {VOCABULARY - 1}"),
        ([5.0, 6.0, 7.0], "thoughts are of torch.float32; give token ids"),
        ([True, False, True], "thoughts are of torch.bool; give token ids"),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_thoughts_that_are_none_are_refused(thought: list, message: str, labelled: bool) -> None:
    model, inputs = tiny_model(n_ahead=5, learn_to_end=True), texts(4) if labelled else unlabelled(4)
    with pytest.raises(SettingsError, match=message):
        model(**inputs, thoughts=torch.tensor(thought).expand(1, 1, 4, 3))


@pytest.mark.parametrize("thought", [[-1, -1, -1], [5, -1, -1], [5, 6, -1]])
def test_thoughts_end_early_only_in_a_model_that_learned_to_end_them(thought: list) -> None:
    given = torch.tensor(thought).expand(1, 1, 4, 3)
    tiny_model(n_ahead=5, learn_to_end=True)(**texts(4), thoughts=given)
    with pytest.raises(SettingsError, match=r"thoughts hold -1; .*only thoughts of a model made with learn_to_end end"):
        tiny_model(n_ahead=5)(**texts(4), thoughts=given)
