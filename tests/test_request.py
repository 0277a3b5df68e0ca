"""What a forward pass refuses, in one line, and what it takes from tools that ask every model for the same."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from quietstar.errors import SettingsError
from quietstar.learn import Rollout
from tests.tiny import VOCABULARY, texts, tiny_model


def unlabelled(*lengths: int) -> dict[str, Tensor]:
    return {name: value for name, value in texts(*lengths).items() if name != "labels"}


NOTHING_ASKED = {
    "nothing": {},
    "null": dict.fromkeys(("inputs_embeds", "output_hidden_states", "output_attentions", "return_dict", "colour")),
    "null of ours": dict.fromkeys(("think", "thought_top_p", "logits_to_keep", "labels", "cache", "position_ids")),
    "false": {"output_hidden_states": False, "output_attentions": False, "output_router_logits": False},
    "true": {"return_dict": True},
}


@pytest.mark.parametrize("what", NOTHING_ASKED)
def test_arguments_that_ask_for_nothing_change_nothing(what: str) -> None:
    """Other tools hand them to every model."""
    model, inputs = tiny_model(n_ahead=4), unlabelled(7, 4)
    output = model(**inputs, **NOTHING_ASKED[what])
    assert torch.equal(output.logits, model(**inputs).logits)
    assert output.hidden_states is None


BAD_ARGUMENTS = {
    "input_ids flat": ({"input_ids": torch.zeros(5).long()}, "input_ids"),
    "a token too high": ({"input_ids": torch.tensor([[5, VOCABULARY]])}, f"input_ids has token {VOCABULARY}; give ids"),
    "a token below 0": ({"input_ids": torch.tensor([[5, -100]])}, "input_ids has token -100; give ids from 0 to"),
    "a label too high": ({"labels": torch.full((2, 5), VOCABULARY)}, f"labels has token {VOCABULARY}; give ids"),
    "a label below 0": ({"labels": torch.full((2, 5), -1)}, "labels has token -1; .* or -100 where nothing"),
    "no tokens": ({"input_ids": torch.zeros(2, 0).long()}, "at least one token"),
    "mask 4-D": ({"attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask"),
    "labels of another shape": ({"labels": torch.zeros(2, 4).long()}, "labels"),
    "labels with a cache": ({"labels": torch.zeros(2, 5).long(), "cache": DynamicCache()}, "a cache"),
    "a cache by both names": ({"cache": DynamicCache(), "past_key_values": DynamicCache()}, "give cache"),
    "thoughts without passes": ({"thoughts": torch.zeros(2, 5, 2).long()}, "thoughts"),
    "thoughts of another length": ({"thoughts": torch.zeros(2, 1, 4, 2).long()}, "thoughts"),
    "thoughts of another batch": ({"thoughts": torch.zeros(1, 1, 5, 2).long()}, "thoughts"),
    "thoughts of another n_ahead": (
        {"thoughts": torch.zeros(2, 1, 5, 3).long(), "n_ahead": 4},
        "n_ahead is 4, and thoughts of 3 tokens were given, 5 with start and end; leave n_ahead out",
    ),
    "n_ahead 0": ({"n_ahead": 0}, "n_ahead is 0; give a whole number of at least 2"),
    "n_ahead 1": ({"n_ahead": 1}, "n_ahead is 1; give a whole number of at least 2"),
    "n_ahead of a half": ({"n_ahead": 2.5}, "n_ahead is 2.5; give a whole number"),
    "n_ahead as text": ({"n_ahead": "8"}, "n_ahead is '8'; give a whole number"),
    "n_ahead true": ({"n_ahead": True}, "n_ahead is True; give a whole number"),
    "n_passes 0": ({"n_passes": 0}, "n_passes"),
    "n_ahead_talk 0": ({"n_ahead_talk": 0}, "n_ahead_talk"),
    "think_at of another shape": (
        {"think_at": torch.ones(2, 4).long()},
        r"think_at is \[2, 4\]; give",
    ),
    "a list": ({"input_ids": [[5, 6]]}, "input_ids is of type list; give a tensor"),
    "a mask as a list": ({"attention_mask": [[1]]}, "attention_mask is of type list; give a tensor"),
    "a temperature as text": ({"thought_temperature": "1"}, "thought_temperature is '1'; give a number of at least 0"),
    "a top-p as text": ({"thought_top_p": "0.9"}, "thought_top_p is '0.9'; give a number above 0, at most 1"),
    "an unknown argument": ({"colour": 3}, "colour"),
    "an unknown argument that is false": ({"colour": False}, "colour"),
    "no token ids": ({"input_ids": None}, "input_ids are missing"),
    "embeddings": ({"inputs_embeds": torch.zeros(2, 5, 32)}, "give input_ids"),
    "embeddings alone": ({"input_ids": None, "inputs_embeds": torch.zeros(2, 5, 32)}, "give input_ids"),
    "attentions": ({"output_attentions": True}, "output_attentions was asked for"),
    "router logits": ({"output_router_logits": True}, "output_router_logits was asked for"),
    "a tuple": ({"return_dict": False}, "a tuple"),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_in_one_line(what: str) -> None:
    arguments, names = BAD_ARGUMENTS[what]
    with pytest.raises(SettingsError, match=names) as refusal:
        tiny_model(n_ahead=4)(**{"input_ids": torch.ones(2, 5).long(), **arguments})
    assert "\n" not in str(refusal.value)


def test_learned_positions_run_out_with_a_clear_error() -> None:
    """The last branch must fit, base tokens alone do not matter."""
    model = tiny_model("gpt2", base={"n_positions": 16}, n_ahead=4)
    fits = model(**unlabelled(12))
    assert fits.logits.shape == (1, 12, VOCABULARY)
    with pytest.raises(SettingsError, match="learned 16 positions; give at most 12 tokens"):
        model(**unlabelled(13))
    assert model(**unlabelled(14), n_ahead=2).logits.shape == (1, 14, VOCABULARY)
    with pytest.raises(SettingsError, match="learned 16 positions; give at most 11 tokens"):
        model(**unlabelled(12), n_ahead=5)
    with pytest.raises(SettingsError, match="learned 16 positions"):
        model.generate(**unlabelled(8), max_new_tokens=8, do_sample=False, eos_token_id=None)


def test_a_mask_must_span_what_was_read_before() -> None:
    """The mask of the new tokens alone would be read as that of the first ones."""
    model, cache = tiny_model(n_ahead=4), DynamicCache()
    model(**unlabelled(6), cache=cache)
    with pytest.raises(SettingsError, match=r"give \[1, 7\]"):
        model(torch.full((1, 1), 5), torch.ones(1, 1), cache=cache)


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        (dict(kl_weight=0.1), "kl_weight is 0.1 in a rollout without reference_logprob; give both"),
        (dict(logprob=torch.zeros(1, 1, 4, 2)), r"logprob in a rollout is \[1, 1, 4, 2\]; give the thoughts"),
        (dict(reference_nll=torch.zeros(1, 3)), r"reference_nll in a rollout is \[1, 3\]; give the shape \[1, 4\]"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_rollout_fits_the_pass_that_it_is_given_to(rollout: dict, told: str) -> None:
    model, ids = tiny_model(n_ahead=4), torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(SettingsError, match=told):
        model(ids, labels=ids, rollout=Rollout(**rollout))
    with pytest.raises(SettingsError, match="a rollout was given without labels"):
        model(ids, rollout=Rollout())
