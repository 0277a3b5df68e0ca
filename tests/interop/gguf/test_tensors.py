"""Every weight has its name in llama.cpp, or the model is refused."""

import pytest
import torch
from torch import nn

from quietstar.errors import UnsupportedModelError
from quietstar.interop.gguf.families import FAMILIES
from quietstar.interop.gguf.tensors import tensors_of
from tests.interop.gguf.conftest import plain_model

pytest.importorskip("gguf", reason="gguf is not installed (extra: gguf)")


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_weight_is_written_once(tied):
    names = [name for name, _ in tensors_of(plain_model("llama", tie_word_embeddings=tied), FAMILIES["llama"])]
    assert len(set(names)) == len(names) == 2 * 9 + 2 + (not tied)
    assert ("output.weight" in names) is not tied


def test_a_weight_that_llama_cpp_does_not_know():
    model = plain_model("llama")
    model.model.layers[0].mlp.second = nn.Linear(3, 3)
    with pytest.raises(
        UnsupportedModelError, match=r"a weight model\.layers\.0\.mlp\.second\.weight, which llama\.cpp"
    ):
        list(tensors_of(model, FAMILIES["llama"]))


def test_untied_gemma_2_is_refused():
    """llama.cpp would take the embeddings."""
    with pytest.raises(
        UnsupportedModelError, match=r"a weight lm_head\.weight, which llama\.cpp does not have for gemma2"
    ):
        list(tensors_of(plain_model("gemma2", tie_word_embeddings=False), FAMILIES["gemma2"]))


def test_halves_of_a_head_are_dealt_out_by_turns():
    model = plain_model("llama")
    query = model.model.layers[0].self_attn.q_proj
    query.weight.data.copy_(torch.arange(32.0)[:, None].expand(32, 32))
    found = dict(tensors_of(model, FAMILIES["llama"]))["blk.0.attn_q.weight"][:, 0]
    assert found[:8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert found[8:16].tolist() == [8, 12, 9, 13, 10, 14, 11, 15]
