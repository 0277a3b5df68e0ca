"""A base model that a thought grid does not work with is refused."""

from collections.abc import Callable
from pathlib import Path
from types import MethodType

import pytest
import torch
from transformers import PreTrainedModel

from quietstar import QuietStarForCausalLM
from quietstar.base.checks import best_backend, check_base
from quietstar.errors import CheckpointError, SettingsError, UnsupportedModelError
from tests.tiny import FAMILIES, tiny_base, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_and_is_left_as_it_was(family: str) -> None:
    base_lm = tiny_base(family).train()
    assert best_backend(base_lm) == "split"
    check_base(base_lm, "dense")
    assert base_lm.training


def test_a_thinking_model_is_no_base_model() -> None:
    with pytest.raises(SettingsError, match="the base model is a thinking model; use it as it is, or give its base_lm"):
        QuietStarForCausalLM.from_base(tiny_model())


def test_a_model_without_an_lm_head_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="has no LM head; load it with AutoModelForCausalLM"):
        QuietStarForCausalLM.from_base(tiny_base().base_model)


def instead(base_lm: PreTrainedModel, change: Callable[[dict], None]) -> PreTrainedModel:
    """The trunk's forward, with its keyword arguments changed."""
    trunk = base_lm.base_model
    right = trunk.forward

    def forward(self: object, **kwargs: object) -> object:
        change(kwargs)
        return right(**kwargs)

    trunk.forward = MethodType(forward, trunk)
    return base_lm


def without_position_ids(kwargs: dict) -> None:
    kwargs.pop("position_ids", None)


def without_four_dimensional_masks(kwargs: dict) -> None:
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.dim() == 4:
        kwargs["attention_mask"] = None


def without_the_grid(kwargs: dict) -> None:
    """Its layers then find no mask but the one of NaN, so that nothing is silently wrong."""
    kwargs.pop("attend_with", None)


def positions_in_a_row(kwargs: dict) -> None:
    ids = kwargs.get("position_ids")
    if ids is not None:
        kwargs["position_ids"] = torch.arange(ids.shape[1])[None]


@pytest.mark.parametrize(
    ("change", "backend"),
    [
        (without_position_ids, "dense"),
        (without_position_ids, "split"),
        (without_four_dimensional_masks, "dense"),
        (without_the_grid, "split"),
        (positions_in_a_row, "dense"),
        (positions_in_a_row, "split"),
    ],
)
def test_a_model_that_ignores_what_it_is_given_is_refused(change: Callable[[dict], None], backend: str) -> None:
    check_base(tiny_base(), backend)
    with pytest.raises(UnsupportedModelError, match=f"'llama' cannot be served with {backend} attention"):
        check_base(instead(tiny_base(), change), backend)


def test_where_only_dense_masks_are_right_they_are_used_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = QuietStarForCausalLM.from_base(instead(tiny_base(), without_the_grid), n_ahead=4)
    assert model.attention.name == "dense"
    said = [record.getMessage() for record in caplog.records if "dense masks are used instead" in record.getMessage()]
    assert len(said) == 1
    with pytest.raises(UnsupportedModelError, match="with split attention"):
        model.set_attention_backend("split")
    assert model.attention.name == "dense"


def test_a_model_whose_weights_are_not_finite_is_not_said_to_be_unsupported() -> None:
    base_lm = tiny_base()
    base_lm.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="predictions are NaN: its weights are damaged, or its training diverged"):
        best_backend(base_lm)


def test_a_model_with_logits_of_its_own_is_refused() -> None:
    """Whatever it does to logits after its head, and that we do not know of."""
    base_lm = tiny_base()
    base_lm.lm_head.register_forward_hook(lambda module, given, logits: logits)
    check_base(base_lm, "split")
    right = base_lm.forward

    def forward(self: object, **kwargs: object) -> object:
        outputs = right(**kwargs)
        outputs.logits = outputs.logits + torch.arange(61)
        return outputs

    base_lm.forward = MethodType(forward, base_lm)
    with pytest.raises(UnsupportedModelError, match="prediction from the last hidden state"):
        check_base(base_lm, "split")


def test_the_check_is_made_when_loading_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path)
    seen = []
    monkeypatch.setattr("quietstar.base.checks.check_base", lambda *given: seen.append(given))
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert seen == [(loaded.base_lm, "split")]
