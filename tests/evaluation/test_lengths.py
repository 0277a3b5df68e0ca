"""Points of a sweep over lengths of thoughts: which lengths, and what they cost."""

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.errors import SettingsError
from quietstar.evaluation.lengths import length_point, passes_a_token, swept_lengths
from quietstar.evaluation.scoring import Scores
from quietstar.policy import ThinkPolicy
from tests.test_decode import prompts
from tests.tiny import tiny_model


def test_lengths_rise_and_each_is_there_once() -> None:
    assert swept_lengths("8, 2,4,8") == [2, 4, 8]
    assert swept_lengths("3") == [3]


@pytest.mark.parametrize("lengths", ["", ",", "2,", "1", "2,0", "-2", "2.5", "two", "2 4", "2;4"])
def test_lengths_that_cannot_be_are_refused_in_one_line(lengths: str) -> None:
    with pytest.raises(SettingsError, match=r"give whole numbers of at least 2, separated by commas") as refusal:
        swept_lengths(lengths)
    assert "\n" not in str(refusal.value)


def passes_of(model: QuietStarForCausalLM, think: str, n_ahead: int) -> tuple[float, float]:
    """The passes through the base model for each of 8 tokens after a prompt, and the share that have a thought."""
    n_passes = []
    model.base_lm.model.register_forward_hook(lambda *_: n_passes.append(1))
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}
    found = model.generate(**prompts(5), **how, think=think, n_ahead=n_ahead, output_thoughts=True)
    return len(n_passes) / 8, float(found.thoughts.thought.float().mean())


@pytest.mark.parametrize("n_ahead", [2, 3, 8])
@pytest.mark.parametrize("think", ["always", "never", "every:3", "entropy:2.2,budget:3"])
@pytest.mark.parametrize("adapters", [False, True], ids=["", "branch adapters"])
def test_passes_are_those_that_decoding_makes(think: str, n_ahead: int, adapters: bool) -> None:
    model = tiny_model(n_ahead=4, **({"branch_adapters": {"r": 2, "lora_alpha": 4}} if adapters else {}))
    passes, share = passes_of(model, think, n_ahead)
    assert 0 < share < 1 or think in ("always", "never")
    found = passes_a_token(ThinkPolicy.parse(think), n_ahead, share, branches_differ=adapters)
    assert found == pytest.approx(passes)


def test_a_point_is_means_with_intervals_and_paired_differences() -> None:
    def scores(*logprob: float) -> Scores:
        of, no = torch.tensor(logprob), torch.zeros(len(logprob), dtype=torch.bool)
        return Scores(logprob=of, is_likeliest=no, within=of / 2, thought=no, measured=of)

    base = [scores(-1.0, -3.0), scores(-2.0)]
    found = length_point(4, 3.0, [scores(-1.0, -1.0), scores(-2.0)], base, is_task=True)
    assert (found.n_ahead, found.passes) == (4, 3.0)
    assert found.nll.value == pytest.approx(4 / 3)
    assert found.nll_difference.value == pytest.approx(-2 / 3)
    assert found.answer_probability.value == pytest.approx(float(torch.tensor([-1.0, -1.0]).exp().mean()))
    assert found.answer_difference.value == pytest.approx(
        float(torch.tensor([-1.0]).exp() - torch.tensor(-2.0).exp()) / 2
    )
    assert found.nll.low <= found.nll.value <= found.nll.high
    assert length_point(4, 3.0, base, base, is_task=False).answer_probability is None
