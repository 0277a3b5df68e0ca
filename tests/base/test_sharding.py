"""Processes that wait for their weights are told from those that have them."""

import torch

from quietstar import QuietStarForCausalLM
from quietstar.base.sharding import has_weights
from tests.tiny import tiny_base


def test_a_process_without_weights_is_given_thoughts_unchecked() -> None:
    """FSDP: transformers leaves the weights of all processes but the first on the meta device, or zero."""
    base_lm = tiny_base()
    assert has_weights(base_lm)
    with torch.no_grad():
        for parameter in base_lm.parameters():
            parameter.zero_()
    for waiting in (base_lm, tiny_base().to("meta")):
        assert not has_weights(waiting)
        model = QuietStarForCausalLM.from_base(waiting)
        assert not model.thought_embeddings.start_embedding.any()
