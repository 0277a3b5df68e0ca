"""Points of a sweep over lengths of thoughts: which lengths, and what they cost."""

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.errors import SettingsError
from quietstar.evaluation.lengths import length_point, passes_a_token, swept_lengths
from quietstar.evaluation.scoring import Scores
from quietstar.output import ENDED
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


def passes_of(model: QuietStarForCausalLM, think: str, n_ahead: int) -> tuple[float, Scores]:
    """The passes through the base model for each of 8 tokens after a prompt, and where and how long it thought."""
    n_passes = []
    model.base_lm.model.register_forward_hook(lambda *_: n_passes.append(1))
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}
    found = model.generate(**prompts(5), **how, think=think, n_ahead=n_ahead, output_thoughts=True)
    thought, tokens = found.thoughts.thought[0], found.thoughts.tokens[0]
    nothing, length = torch.zeros(8), (tokens != ENDED).sum(-1) * thought
    return len(n_passes) / 8, Scores(nothing, nothing.bool(), nothing, thought, nothing, length)


@pytest.mark.parametrize("n_ahead", [2, 3, 8])
@pytest.mark.parametrize("think", ["always", "never", "every:3", "entropy:2.2,budget:3"])
@pytest.mark.parametrize("adapters", [False, True], ids=["", "branch adapters"])
@pytest.mark.parametrize("learn_to_end", [False, True], ids=["", "early ends"])
def test_passes_are_those_that_decoding_makes(think: str, n_ahead: int, adapters: bool, learn_to_end: bool) -> None:
    settings = {"branch_adapters": {"r": 2, "lora_alpha": 4}} if adapters else {}
    model = tiny_model(n_ahead=4, learn_to_end=learn_to_end, **settings)
    passes, scores = passes_of(model, think, n_ahead)
    assert 0 < scores.thought.sum() < 8 or think in ("always", "never")
    if learn_to_end and n_ahead == 8 and think == "always":
        assert 0 < scores.thought_length.float().mean() < 6
    found = passes_a_token(ThinkPolicy.parse(think), n_ahead, [scores], branches_differ=adapters)
    assert found == pytest.approx(passes)


def test_a_point_is_means_with_intervals_and_paired_differences() -> None:
    def scores(*logprob: float) -> Scores:
        of, no = torch.tensor(logprob), torch.zeros(len(logprob), dtype=torch.bool)
        return Scores(logprob=of, is_likeliest=no, within=of / 2, thought=no, measured=of, thought_length=no.long())

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
