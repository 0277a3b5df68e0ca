"""The likeliest tokens of a prediction, and the rows that may think."""

import pytest
import torch

from quietstar.journal import Journal, TopTokens
from quietstar.policy import ThinkPolicy


@pytest.mark.parametrize("k", [0, 1, 3, 50])
def test_equally_likely_tokens_come_in_the_order_of_their_ids(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (2, 5, 20), generator=generator).bfloat16()
    found = TopTokens.of(logits, k)
    logprob = logits.float().log_softmax(-1)
    expected = logprob.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found.ids[..., :1], logprob.argmax(-1, keepdim=True)[..., :k])
    assert torch.equal(found.logprob, expected.values[..., :k])
    assert torch.equal(found.logprob, logprob.gather(-1, found.ids))
    if k >= 20:
        assert torch.equal(found.ids, expected.indices)


def test_no_row_thinks_within_a_prompt_or_after_its_end_and_a_prompt_may_contain_an_end() -> None:
    journal, ends = Journal(ThinkPolicy.parse("always")), torch.tensor([[5, 9], [5, 6]])
    journal.begin(n_prompt=4)
    journal.eos_ids = torch.tensor([9])
    for n_read, input_ids, expected in (
        (2, ends, [False] * 2),
        (4, ends, [True] * 2),
        (5, ends[:, -1:], [False, True]),
    ):
        assert journal.begin_step(input_ids, n_read).tolist() == expected
    assert journal.finished.tolist() == [True, False]
