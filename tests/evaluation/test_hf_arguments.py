"""Arguments of lm-eval's `hf` model: applied, without effect, or refused; never silently ignored."""

import re
from inspect import signature
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM

from quietstar.errors import SettingsError
from quietstar.evaluation.harness import QuietStarLM
from quietstar.evaluation.hf_arguments import HELD_TO, without_defaults

KNOWN = signature(HFLM.__init__).parameters


def test_defaults_of_others_are_no_wishes() -> None:
    """lm-eval's own defaults, None, and the only backend."""
    loading = {name: each.default for name, each in KNOWN.items() if each.default is not each.empty} | {"peft": None}
    asked = {name: value for name, value in loading.items() if name not in HELD_TO} | {"backend": "causal"}
    assert "revision" in asked
    assert without_defaults({**asked, "batch_size": 4, "max_length": None}, KNOWN) == {
        "batch_size": 4,
        "max_length": None,
    }
    assert set(KNOWN) >= HELD_TO


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"revision": "v9"}, "revision=v9"),
        ({"peft": "adapters"}, "peft=adapters"),
        ({"tokenizer": "other"}, "tokenizer=other"),
        ({"backend": "seq2seq"}, "backend=seq2seq"),
        ({"parallelize": True}, "parallelize=True"),
        ({"think_temperature": 0.7}, "think_temperature, which --model quietstar does not know"),
        ({"kwargs": 1}, "kwargs, which"),
    ],
    ids=str,
)
def test_what_would_be_ignored_is_refused(given: dict[str, Any], says: str) -> None:
    """With one line, before a model is loaded."""
    with pytest.raises(SettingsError, match=re.escape(f"model_args has {says}")) as raised:
        QuietStarLM("no/such/model", device="cpu", **given)
    assert "\n" not in str(raised.value)
