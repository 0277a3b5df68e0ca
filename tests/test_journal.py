"""The likeliest tokens of a prediction are the same wherever they are asked for."""

import pytest
import torch

from quietstar.journal import TopTokens


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
