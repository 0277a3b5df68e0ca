"""Perplexity with and without thoughts, by difficulty."""

import math

import pytest
import torch

from quietstar.errors import DataError
from quietstar.evaluation.perplexity import EDGES, measure_perplexity, windows
from quietstar.evaluation.scoring import Speaker
from quietstar.policy import ThinkPolicy
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog, again and again, until both of them are tired of it."


def test_it_is_the_mean_nll_of_the_labels() -> None:
    """They equal the model's own losses in each window; the gain is base loss minus talk loss."""
    tokenizer = byte_tokenizer()
    model = tiny_model(n_ahead=4, base={"vocab_size": len(tokenizer)})
    sequences = windows([TEXT], tokenizer, 16, None)
    found = measure_perplexity(Speaker(model), Speaker(model, ThinkPolicy.parse("always")), sequences, 3)
    base, talk = [], []
    for sequence in sequences:
        row = torch.tensor([sequence.ids])
        with torch.no_grad():
            output = model(row, labels=row, n_ahead_talk=1)
        base += output.base_nll[0, :-1].tolist()
        talk += output.talk_nll[0, 0, :-1, 0].tolist()
    assert found.n_tokens == len(base) == sum(len(sequence.ids) - 1 for sequence in sequences)
    assert found.base_nll.value == pytest.approx(sum(base) / len(base), rel=1e-4)
    assert found.thinking_nll.value == pytest.approx(sum(talk) / len(talk), rel=1e-4)
    assert found.gain.value == pytest.approx(found.base_nll.value - found.thinking_nll.value, rel=1e-4)
    assert found.gain.low < found.gain.value < found.gain.high
    for bins in (found.by_nll, found.by_entropy):
        assert sum(each.n for each in bins) == len(base)
        total = sum(each.n * each.gain.value for each in bins) / len(base)
        assert total == pytest.approx(found.gain.value, rel=1e-3)
    for each in found.by_nll:
        inside = [nll for nll in base if each.low <= nll < each.high]
        assert len(inside) == each.n
        assert each.base_nll == pytest.approx(sum(inside) / each.n, rel=1e-4)
    assert math.isinf(EDGES[-1])


def test_a_fresh_models_thoughts_gain_exactly_nothing() -> None:
    """Its mixing head returns 0."""
    tokenizer = byte_tokenizer()
    model = tiny_model(n_ahead=4, base={"vocab_size": len(tokenizer)})
    torch.nn.init.zeros_(model.mixing_head.layers[-1].weight)
    found = measure_perplexity(
        Speaker(model), Speaker(model, ThinkPolicy.parse("always")), windows([TEXT], tokenizer, 16, 4), 4
    )
    assert found.gain.value == found.gain.low == found.gain.high == 0


def test_a_text_without_a_prediction_is_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        windows(["x"], byte_tokenizer(), 16, None)
