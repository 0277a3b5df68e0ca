"""A model's weights in a checkpoint are under its own names, each once, and none may be missing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quietstar.errors import CheckpointError
from quietstar.training.weights import load_model, save_model
from tests.tiny import tiny_model


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_found_again(tmp_path: Path, tied: bool) -> None:
    model, other = (tiny_model(base=dict(tie_word_embeddings=tied)) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    save_model(model, None, tmp_path, sharded=False, is_first=True)
    load_model(other, tmp_path, sharded=False)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_only_the_first_process_writes_a_whole_model(tmp_path: Path) -> None:
    save_model(tiny_model(), None, tmp_path, sharded=False, is_first=False)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, None, tmp_path, sharded=False, is_first=True)
    state = load_file(tmp_path / "model.safetensors")
    del state["base_lm.model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's weights, first base_lm.model.norm.weight"):
        load_model(model, tmp_path, sharded=False)
