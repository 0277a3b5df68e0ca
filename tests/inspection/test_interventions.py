"""Each intervention replaces thoughts as its name says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quietstar.errors import SettingsError
from quietstar.inspection import interventions
from quietstar.inspection.interventions import (
    CHOICES,
    Situation,
    filler,
    filler_token,
    interventions_of,
    plain_tokens,
    random_tokens,
    shuffled,
    swapped,
    truncated,
    typed_thought,
)
from tests.tiny_tokenizer import byte_tokenizer

WORDS = torch.arange(3, 40)


def situation(n: int, k: int, seed: int = 0, n_words: int = 37, **more: object) -> Situation:
    generator = torch.Generator().manual_seed(seed)
    thoughts = torch.randint(3, 3 + n_words, (n, k), generator=generator)
    return Situation(thoughts=thoughts, tokens=WORDS, filler=2, generator=generator, **more)


@given(n=st.integers(1, 9), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_what_replaces_a_thought_ends_where_it_ended(n: int, k: int, seed: int) -> None:
    now = situation(n, k, seed)
    lengths = torch.randint(0, k + 1, (n, 1), generator=now.generator)
    has_ended = torch.arange(k) >= lengths
    now.thoughts.masked_fill_(has_ended, -1)
    for replace in (filler, random_tokens, shuffled):
        assert torch.equal(replace(now) == -1, has_ended), replace.__name__
    assert torch.equal(shuffled(now).sort(1).values, now.thoughts.sort(1).values)


@given(n=st.integers(0, 9), k=st.integers(0, 6), seed=st.integers(0, 99), n_words=st.sampled_from([2, 37]))
def test_shuffled_thoughts_have_the_same_tokens_in_another_order(n: int, k: int, seed: int, n_words: int) -> None:
    now = situation(n, k, seed, n_words)
    before = now.thoughts.clone()
    found = shuffled(now)
    assert torch.equal(now.thoughts, before)
    assert torch.equal(found.sort(1).values, before.sort(1).values)
    for own, other in zip(before.tolist(), found.tolist(), strict=True):
        if len(set(own)) == k > 1:
            assert own != other


@given(n=st.integers(2, 20), seed=st.integers(0, 99))
def test_swapped_thoughts_are_others_and_each_is_used_once(n: int, seed: int) -> None:
    now = Situation(
        thoughts=torch.arange(2 * n).view(n, 2), tokens=WORDS, filler=2, generator=torch.Generator().manual_seed(seed)
    )
    found = swapped(now)
    assert found is not None
    assert not (found == now.thoughts).any()
    assert torch.equal(found[found[:, 0].argsort()], now.thoughts)


def test_equal_thoughts_are_swapped_with_others_where_that_can_be() -> None:
    thoughts = torch.tensor([[5]] * 3 + [[6]] * 3 + [[7]] * 3)
    found = swapped(Situation(thoughts=thoughts, tokens=WORDS, filler=2, generator=torch.Generator().manual_seed(0)))
    assert found is not None
    assert int((found == thoughts).sum()) <= 1
    assert torch.equal(found.sort(0).values, thoughts)


def test_a_single_thought_cannot_be_swapped() -> None:
    assert swapped(situation(1, 3)) is None


def test_random_tokens_are_words_all_about_equally_often() -> None:
    found = random_tokens(situation(1000, 37))
    counts = torch.bincount(found.flatten(), minlength=40)[3:]
    assert counts.sum() == 37_000
    assert (counts - 1000).abs().max() < 200


@pytest.mark.parametrize("n", [0, 1, 3])
def test_truncated_thoughts_are_their_beginnings(n: int) -> None:
    now = situation(5, 4)
    found = truncated(n)(now)
    assert found is not None
    assert torch.equal(found, now.thoughts[:, :n])


def test_filler_and_a_typed_thought_are_the_same_everywhere() -> None:
    now = situation(3, 4, given=torch.tensor([7, 8]))
    assert interventions.filler(now).tolist() == [[2] * 4] * 3
    assert interventions.given(now).tolist() == [[7, 8]] * 3  # type: ignore[union-attr]
    assert interventions.given(situation(3, 4)) is None


def test_names() -> None:
    found = interventions_of(list(CHOICES), 3, has_given=True)
    names = [each.name for each in found]
    cut = ["truncated_0", "truncated_1", "truncated_2"]
    assert names == ["removed", "filler", "shuffled", "swapped", "random", *cut, "given"]
    assert len({each.label for each in found}) == len(found)
    with pytest.raises(SettingsError, match="'shufled' is unknown; choose from removed, filler"):
        interventions_of(["shufled"], 3, has_given=False)


def test_words_are_no_special_and_no_suppressed_tokens() -> None:
    tokenizer = byte_tokenizer()
    words = plain_tokens(tokenizer, vocab_size=100, suppressed=[50])
    assert words.tolist() == [token for token in range(3, 100) if token != 50]


def test_the_filler_is_a_dot_where_there_is_one() -> None:
    tokenizer = byte_tokenizer()
    assert filler_token(tokenizer, None) == tokenizer(".")["input_ids"][-1]
    assert filler_token(tokenizer, "-") == tokenizer("-")["input_ids"][-1]
    with pytest.raises(SettingsError, match="filler is '', which is no token to the tokenizer; give a text of one"):
        filler_token(tokenizer, "")
    with pytest.raises(SettingsError, match="filler is 'hm', which is 2 tokens to the tokenizer; give a text of one"):
        filler_token(tokenizer, "hm")


def test_a_space_that_the_tokenizer_adds_is_not_filler() -> None:
    made = Tokenizer(
        models.BPE(vocab={"<unk>": 0, "\N{LOWER ONE EIGHTH BLOCK}": 1, ".": 2}, merges=[], unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert tokenizer.convert_ids_to_tokens(tokenizer(".", add_special_tokens=False)["input_ids"]) == [
        "\N{LOWER ONE EIGHTH BLOCK}",
        ".",
    ]
    assert filler_token(tokenizer, None) == filler_token(tokenizer, ".") == tokenizer.convert_tokens_to_ids(".")
    assert filler_token(tokenizer, " ") == 1


def test_a_token_for_the_unknown_that_is_spelled_out_is_known() -> None:
    """For example if it is also the eos token."""
    made = Tokenizer(models.WordLevel(vocab={"<|end|>": 0, "a": 1}, unk_token="<|end|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<|end|>", eos_token="<|end|>")
    assert filler_token(tokenizer, None) == filler_token(tokenizer, "<|end|>") == 0
    assert typed_thought(tokenizer, "a <|end|>").tolist() == [1, 0]
    with pytest.raises(SettingsError, match="the unknown token"):
        filler_token(tokenizer, "b")
    with pytest.raises(SettingsError, match="does not know all of it"):
        typed_thought(tokenizer, "a b")


def test_a_thought_of_no_token_cannot_be_typed() -> None:
    with pytest.raises(SettingsError, match="thought is '', but it has no tokens; give another text"):
        typed_thought(byte_tokenizer(), "")
    assert typed_thought(byte_tokenizer(), "hm").tolist() == byte_tokenizer()("hm")["input_ids"]


def test_without_plain_tokens_no_thought_is_random() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(SettingsError, match=r"has special tokens only, .* leave random out of the interventions"):
        plain_tokens(tokenizer, vocab_size=3, suppressed=[0, 1, 2])
