"""Special tokens are there once, whether the text or the tokenizer adds them."""

import pytest
from transformers import PreTrainedTokenizerBase

from quietstar.inference.loading import prompt_ids
from quietstar.text.tokens import token_ids
from tests.training.some_texts import SPECIAL, tokenizer_of_characters


def names(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("text", ["ab", "<s>ab", "ab</s>", "<s>ab</s>", "<s><s>ab", "a<s><s>b", "", "<s>"])
def test_a_text_that_has_them_gets_no_more(text: str, adds_bos: bool, adds_eos: bool) -> None:
    tokenizer = tokenizer_of_characters(adds_bos=adds_bos, adds_eos=adds_eos, **SPECIAL)
    (ids,) = token_ids(tokenizer, [text])
    begin = "<s>" if adds_bos and not text.startswith("<s>") else ""
    end = "</s>" if adds_eos and not text.endswith("</s>") else ""
    assert names(tokenizer, ids) == begin + text + end


def test_bos_that_is_also_eos() -> None:
    tokenizer = tokenizer_of_characters(adds_bos=True, bos_token="<s>", eos_token="<s>")
    assert [names(tokenizer, ids) for ids in token_ids(tokenizer, ["a", "<s>a", "a<s><s>"])] == [
        "<s>a",
        "<s>a",
        "<s>a<s><s>",
    ]


def test_a_prompt_has_one_bos_and_no_eos() -> None:
    tokenizer = tokenizer_of_characters(adds_bos=True, adds_eos=True, **SPECIAL)
    assert prompt_ids(tokenizer, "ab") == prompt_ids(tokenizer, "<s>ab")
    assert names(tokenizer, prompt_ids(tokenizer, "<s>ab")) == "<s>ab"
