"""Memory and arithmetic of a step match the formulas, for every kind of step."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quietstar.scaling.memory import Numbers, highest
from quietstar.scaling.shape import shape_of
from quietstar.scaling.step import flops
from quietstar.scaling.strategies import ONE, held_by
from tests.long import mostly_long
from tests.scaling.counting import Operations

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {
    "llama": dict(vocab_size=2000, hidden_size=64, intermediate_size=160, num_hidden_layers=3),
    "gpt2": dict(vocab_size=2000, n_embd=64, n_layer=3, n_head=8),
    "gemma3_text": dict(vocab_size=8000, hidden_size=64, intermediate_size=160, num_hidden_layers=2, head_dim=16),
    "wide": dict(vocab_size=2000, hidden_size=256, intermediate_size=704, num_hidden_layers=2),
    "large-vocabulary": dict(
        model_type="llama",
        vocab_size=32_000,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=False,
    ),
}
CHANGES = {
    "plain": {},
    "thought": dict(n_ahead=10, n_ahead_talk=4),
    "no-word": dict(n_ahead=2, n_ahead_talk=5),
    "one-pass": dict(n_passes=1),
    "passes": dict(n_passes=4),
    "half": dict(fraction=0.5),
    "checkpointing": dict(checkpointing=True),
    "bfloat16-autocast": dict(bfloat16=True),
    "bfloat16": dict(bfloat16=True, bfloat16_weights=True),
    "lora": dict(lora_r=4),
    "lora-bfloat16-autocast": dict(lora_r=4, bfloat16=True),
    "lora-bfloat16": dict(lora_r=4, bfloat16=True, bfloat16_weights=True),
    "lora-checkpointing": dict(lora_r=4, checkpointing=True),
    "short-checkpointing": dict(batch=1, length=8, checkpointing=True),
    "accumulation": dict(accumulation=2),
    "accumulation-checkpointing": dict(accumulation=2, checkpointing=True),
    "accumulation-bfloat16": dict(accumulation=2, bfloat16=True, bfloat16_weights=True),
}
CASES = [("llama", change) for change in CHANGES]
CASES += [("wide", "lora-bfloat16-autocast"), ("wide", "accumulation"), ("wide", "accumulation-checkpointing")]
CASES += [("gemma3_text", "bfloat16-autocast"), ("large-vocabulary", "bfloat16-autocast")]
CASES += [("large-vocabulary", "short-checkpointing"), ("large-vocabulary", "accumulation")]
CASES += [(family, change) for family in ("gpt2", "gemma3_text", "wide") for change in ("plain", "checkpointing")]

OTHERWISE = "bfloat16|accumulation|short"
"""cases with other arithmetic; for a short sequence, most memory is in padded blocks of logits"""


def is_one_change(case: tuple[str, str]) -> bool:
    """Return whether the case changes nothing else."""
    return "-" not in case[1]


@pytest.fixture
def memory(monkeypatch):
    """Return the benchmark with models small enough for a test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory
    import memory_cases

    for family, sizes in SMALL.items():
        monkeypatch.setitem(memory_cases.FAMILIES, family, memory_cases.FAMILIES.get(family, {}) | sizes)
    return memory


def case_of(memory, family, change):
    if "lora" in change or change in FROZEN:
        pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    return replace(memory.Case(family, batch=2, length=64, n_ahead=5, n_ahead_talk=2), **(CHANGES | FROZEN)[change])


@pytest.mark.parametrize(("family", "change"), mostly_long(CASES, is_one_change))
def test_the_peak_is_the_computed_one(memory, family, change):
    """The sum of live tensors matches within 5 %: weights, states, activations, gradients."""
    case = case_of(memory, family, change)
    assert memory.computed(case).total == pytest.approx(memory.measure_tensors(case), rel=0.05)


FROZEN = {
    "frozen": dict(lora_r=4, fraction=0.1, frozen_base=True),
    "frozen-checkpointing": dict(lora_r=4, fraction=0.1, frozen_base=True, checkpointing=True),
}


@pytest.mark.parametrize(
    ("family", "change"),
    mostly_long([case for case in CASES if not re.search(OTHERWISE, case[1])], is_one_change)
    + [("wide", change) for change in FROZEN],
)
def test_the_arithmetic_is_the_computed_one(memory, family, change):
    """The products of a forward and backward pass match within 10 %."""
    case = case_of(memory, family, change)
    training = memory.Training(case, memory.base_config(family))
    with Operations() as counted:
        training.step()
    shape = shape_of(memory.base_config(family), lora=case.lora)
    assert flops(shape, case.step).total == pytest.approx(counted.total, rel=0.1)


def test_memory_grows_with_what_it_hangs_on(memory):
    shape = shape_of(memory.base_config("llama"))
    numbers = Numbers(weights=torch.float32, autocast=False)
    held = held_by(shape, numbers, ONE, 1)[0]
    step = memory.Case("llama", batch=8, length=64).step
    total = highest(shape, step, numbers, held).total
    for name in ("B", "S", "n_ahead", "M", "P"):
        assert highest(shape, replace(step, **{name: 2 * getattr(step, name)}), numbers, held).total > total, name
    for less in ({"fraction": 0.5}, {"checkpointing": True}):
        assert highest(shape, replace(step, **less), numbers, held).total < total, less
    assert highest(shape, step, numbers, replace(held, optimizer=held.optimizer + 1000)).total == total + 1000


def test_an_unknown_case_is_refused(memory, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["memory.py", "--cases", "fly"])
    with pytest.raises(SystemExit):
        memory.main()
    assert "no case is named fly; choose from llama, " in capsys.readouterr().err
