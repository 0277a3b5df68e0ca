"""A trace has what `forward` and `generate` say, position by position; interventions do what was put in the place."""

import copy
import math

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.errors import SettingsError
from quietstar.inspection import schema
from quietstar.inspection.observe import trace
from quietstar.inspection.payload import payload_of
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from tests.plain_loop import plain_loop
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
SIZE = {"vocab_size": len(TOKENIZER)}
N_AHEAD = 6
TEXT = "What is 2 👩?"
IDS = list(TOKENIZER(TEXT)["input_ids"])
S = len(IDS)


def thinker(family: str = "llama") -> QuietStarForCausalLM:
    return tiny_model(family, base=SIZE, n_ahead=N_AHEAD)


def traced(model: QuietStarForCausalLM, *ids: list[int], **settings: object) -> Trace:
    rows = [TextToTrace(ids=each) for each in ids or (IDS,)]
    return trace(model, TOKENIZER, rows, TraceSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "gpt2"])
def test_records_are_forwards_figures(family: str) -> None:
    model = thinker(family)
    found = traced(model, n_ahead_talk=3).columns
    row = torch.tensor([IDS])
    expected = model(row, labels=row, n_ahead_talk=3)
    assert found["thought_ids"] == expected.thoughts[0, 0].tolist()
    assert found["token_id"] == IDS
    assert found["next_id"] == [*IDS[1:], None]
    assert "".join(found["piece"]) == TEXT
    assert found["mixing_weight"][:-1] == pytest.approx(expected.mixing_weight[0, 0, :-1, 0].tolist(), abs=1e-4)
    assert found["reward"][:-3] == pytest.approx(expected.reward[0, 0, :-3].tolist(), abs=1e-3)
    assert found["reward"][-3:] == [None] * 3  # not all three tokens are there
    assert found["gain"][-1] is None
    for i in range(S):
        there = min(3, S - 1 - i)
        assert found["base_logprob"][i] == pytest.approx((-expected.base_nll[0, i : i + there]).tolist(), abs=1e-3)
        assert found["mixed_logprob"][i] == pytest.approx((-expected.talk_nll[0, 0, i, :there]).tolist(), abs=1e-3)
        if there:
            assert found["gain"][i] == pytest.approx(
                found["mixed_logprob"][i][0] - found["base_logprob"][i][0], abs=1e-4
            )
        if there == 3:
            assert found["reward"][i] == pytest.approx(
                sum(found["mixed_logprob"][i]) - sum(found["base_logprob"][i]), abs=1e-4
            )
    mixed = expected.logits[0].log_softmax(-1).topk(5)
    assert found["mixed_top_ids"] == mixed.indices.tolist()
    assert found["mixed_top_logprob"][0] == pytest.approx(mixed.values[0].tolist(), abs=1e-3)
    base = model.base_lm(row).logits[0]
    assert found["base_top_ids"] == base.topk(5).indices.tolist()
    entropy = torch.distributions.Categorical(logits=base).entropy()
    assert found["base_entropy"] == pytest.approx(entropy.tolist(), abs=1e-3)
    assert max(map(abs, found["gain"][:-1])) > 0.5  # otherwise nothing is tested


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "gpt2"])
def test_in_bfloat16_a_trace_is_as_near_to_the_truth_as_a_plain_loop(family: str) -> None:
    """Both round in their own order: what they differ by is told from an error by the same weights in float32."""
    short = thinker(family).to(torch.bfloat16)
    exact = copy.deepcopy(short).float()
    found = traced(short, n_ahead_talk=2, interventions=()).columns
    row, thoughts = torch.tensor([IDS]), torch.tensor(found["thought_ids"])[None, None]

    def plain(model: QuietStarForCausalLM) -> torch.Tensor:
        return -plain_loop(model, row, torch.ones_like(row), row, thoughts, 2).talk_nll[0, 0, : S - 2]

    truth = plain(exact)
    error, loops_error = (
        float((of - truth).pow(2).mean().sqrt()) for of in (torch.tensor(found["mixed_logprob"][: S - 2]), plain(short))
    )
    assert 1e-3 < error < 1.5 * loops_error
    again = [TextToTrace(ids=IDS, thoughts=dict(enumerate(found["thought_ids"])))]
    of_exact = trace(exact, TOKENIZER, again, TraceSettings(n_ahead_talk=2, interventions=())).columns
    assert (torch.tensor(of_exact["mixed_logprob"][: S - 2]) - truth).abs().max() < 1e-3


def test_the_thought_alone_is_what_a_weight_of_one_would_say() -> None:
    model = thinker()
    found = traced(model).columns

    class One(torch.nn.Module):
        def forward(self, base: torch.Tensor, thought: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(thought[..., :1])

    model.mixing_head = One()  # type: ignore[assignment]
    row = torch.tensor([IDS])
    alone = model(row).logits[0].detach().log_softmax(-1)
    assert found["alone_top_ids"] == alone.topk(5).indices.tolist()
    for i in range(S - 1):
        assert found["alone_logprob"][i][0] == pytest.approx(float(alone[i, IDS[i + 1]]), abs=1e-3)


def test_interventions_do_what_the_same_thoughts_do_when_given() -> None:
    model = thinker()
    found = traced(model, thought="hm").columns
    row = torch.tensor([IDS])
    own = model(row).logits[0].detach().log_softmax(-1)
    for name in ("filler", "shuffled", "swapped", "random"):
        thoughts = torch.tensor([found[f"{name}_thought_ids"]])[None]
        other = model(row, thoughts=thoughts).logits[0].detach().log_softmax(-1)
        kl = (own.exp() * (own - other)).sum(-1)
        assert found[f"{name}_kl"] == pytest.approx(kl.tolist(), abs=1e-3)
        assert found[f"{name}_top_id"] == other.argmax(-1).tolist()
        assert found[f"{name}_flips"] == (other.argmax(-1) != own.argmax(-1)).tolist()
        change = [float(other[i, IDS[i + 1]] - own[i, IDS[i + 1]]) for i in range(S - 1)]
        assert found[f"{name}_delta"][:-1] == pytest.approx(change, abs=1e-3)
        assert found[f"{name}_delta"][-1] is None
        assert max(map(abs, change)) > 0.1
    base = model.base_lm(row).logits[0].log_softmax(-1)
    assert found["removed_delta"][:-1] == pytest.approx([-gain for gain in found["gain"][:-1]], abs=1e-4)
    assert found["removed_top_id"] == base.argmax(-1).tolist()
    assert found["removed_thought_ids"] == [None] * S
    short = copy.deepcopy(model)
    for n, name in [(0, "truncated_0"), (2, "truncated_2"), (2, "given")]:
        short.config.n_ahead = n + 2
        thoughts = torch.tensor([found[f"{name}_thought_ids"]], dtype=torch.long).view(1, 1, S, n)
        other = short(row, thoughts=thoughts).logits[0].detach().log_softmax(-1)
        assert found[f"{name}_kl"] == pytest.approx((own.exp() * (own - other)).sum(-1).tolist(), abs=1e-3)
    assert found["given_thought_ids"][0] == TOKENIZER("hm")["input_ids"]


def test_ones_own_thought_in_its_place_changes_nothing() -> None:
    model = thinker()
    thoughts = {i: TOKENIZER("hmmm")["input_ids"] for i in (2, 5)}
    rows = [TextToTrace(ids=IDS, thoughts=thoughts, reasons={2: "asked"})]
    found = trace(model, TOKENIZER, rows, TraceSettings(thought="hmmm")).columns
    assert [i for i, was in enumerate(found["thought"]) if was] == [2, 5]
    assert found["reason"][2] == "asked"
    for i in (2, 5):
        assert found["thought_text"][i] == "hmmm"
        assert found["given_kl"][i] == pytest.approx(0, abs=1e-5)
        assert found["given_delta"][i] == pytest.approx(0, abs=1e-4)
        assert found["given_flips"][i] is False
        assert found["filler_kl"][i] > 1e-3


def test_a_fresh_model_stays_as_it_was_whatever_is_thought() -> None:
    """The mixing head begins at zero: nothing may change, to the last bit."""
    fresh = QuietStarForCausalLM.from_base(tiny_model("llama", base=SIZE).base_lm, tokenizer=TOKENIZER, n_ahead=N_AHEAD)
    found = traced(fresh, thought="hm")
    names = schema.interventions_in(list(found.columns))
    assert len(names) == 10
    for name in names:
        assert set(found.columns[f"{name}_delta"][:-1]) == {0.0}, name
        assert set(found.columns[f"{name}_kl"]) == {0.0}, name
        assert set(found.columns[f"{name}_flips"]) == {False}, name
    assert set(found.columns["gain"][:-1]) == {0.0}
    assert len(found.summary.sentences) == 1
    assert "thoughts have no effect" in found.summary.sentences[0]


def test_texts_together_are_texts_alone() -> None:
    model = thinker("mistral-window")
    short = IDS[:3]
    together = traced(model, IDS, short, interventions=("removed", "filler", "truncated")).columns
    assert together["row"] == [0] * S + [1] * 3
    for row, ids, some in [(0, IDS, slice(0, S)), (1, short, slice(S, None))]:
        alone = traced(model, ids, interventions=("removed", "filler", "truncated")).columns
        for name, values in alone.items():
            if name != "row":
                assert _about(together[name][some]) == _about(values), (row, name)


def _about(values: list) -> list:
    """Rounded, so that nothing but rounding may differ."""
    if isinstance(values, list):
        return [_about(each) for each in values]
    return round(values, 3) + 0.0 if isinstance(values, float) else values


def test_where_the_policy_does_not_think_there_is_no_thought() -> None:
    found = traced(thinker(), think="every:3").columns
    assert found["thought"] == [(i + 1) % 3 == 0 for i in range(S)]
    assert all(found["reason"])
    for i in range(S):
        without = [found[name][i] for name in ("thought_ids", "mixing_weight", "alone_top_ids", "mixed_logprob")]
        assert (without == [None] * 4) == (not found["thought"][i])
        assert found["base_top_ids"][i]


@pytest.mark.parametrize("settings", [{"think": "never"}, {"interventions": ()}, {"top_k": 1}, {"think": "budget:1"}])
def test_every_trace_fits_the_schema(settings: dict) -> None:
    found = traced(thinker(), IDS, IDS[:1], **settings)
    schema.check(found.columns, "the trace")
    assert {len(values) for values in found.columns.values()} == {S + 1}
    assert found.summary.sentences


def test_a_model_with_thoughts_of_no_token_can_be_traced() -> None:
    found = traced(tiny_model("llama", base=SIZE, n_ahead=2)).columns
    assert found["thought_ids"] == [[]] * S
    assert found["mixing_weight"][0] is not None


def test_the_model_and_random_numbers_are_left_alone() -> None:
    model = thinker().train()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = traced(model, thought_temperature=1.0, seed=1)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert traced(model, thought_temperature=1.0, seed=1).columns == first.columns
    other = traced(model, thought_temperature=1.0, seed=2)
    assert other.columns["thought_ids"] != first.columns["thought_ids"]


def test_suppressed_tokens_are_never_thought() -> None:
    model = thinker()
    often = traced(model).columns["thought_ids"][0][0]
    model.config.suppressed_token_ids = [often]
    found = traced(model, thought_temperature=1.0).columns
    for name in ("thought_ids", "random_thought_ids", "swapped_thought_ids"):
        assert all(often not in of for of in found[name])
    assert all(math.isfinite(p) for of in found["thought_logprob"] for p in of)


@pytest.mark.parametrize("n_ahead", [2, 3, 9])
def test_a_trace_of_thoughts_of_any_length_is_that_of_the_config(n_ahead: int) -> None:
    """Records, interventions, the report's data, and the n_ahead that it shows."""
    model, expected = thinker(), thinker()
    expected.config.n_ahead = n_ahead
    found, wanted = traced(model, n_ahead=n_ahead), traced(expected)
    assert found.columns == wanted.columns
    assert found.labels == wanted.labels
    assert found.settings == wanted.settings
    assert payload_of(found)["settings"]["n_ahead"] == n_ahead
    assert {len(thought) for thought in found.columns["thought_ids"]} == {n_ahead - 2}
    assert sum("truncated" in name for name in found.labels) == n_ahead - 2
    recorded = {0: [5] * (n_ahead - 2)}
    settings = TraceSettings(n_ahead=n_ahead)
    again = trace(model, TOKENIZER, [TextToTrace(ids=IDS, thoughts=recorded)], settings)
    assert again.columns["thought_ids"][0] == recorded[0]


def test_bad_settings_are_said_in_one_line() -> None:
    for settings, said in [
        ({"think": "sometimes"}, "choose from always"),
        ({"top_k": 0}, "top_k is 0; give a whole number of at least 1"),
        ({"n_ahead": 1}, "n_ahead is 1; give a whole number of at least 2"),
        ({"n_ahead": "8"}, "n_ahead is '8'; give a whole number"),
        ({"n_ahead_talk": 0}, "n_ahead_talk is 0; give a whole number of at least 1"),
        ({"interventions": ("removed", "x")}, "intervention 'x' is unknown; choose from"),
        ({"thought_temperature": -1}, "thought_temperature is -1"),
        ({"filler": ""}, "filler is ''"),
        ({"top_k": "5"}, "top_k is '5'; give a whole number"),
        ({"seed": -1}, "seed is -1; give a whole number of at least 0"),
        ({"thought_temperature": None}, "thought_temperature is None; give a number"),
        ({"interventions": "remove"}, "intervention 'remove' is unknown"),
    ]:
        with pytest.raises(SettingsError, match=said) as error:
            traced(thinker(), **settings)
        assert "\n" not in str(error.value)
    for text, said in [
        ({"may_think": [S]}, f"at position {S} of {S}; give one from 0 to {S - 1}"),
        ({"may_think": [-1]}, "at position -1"),
        ({"thoughts": {S: [5] * (N_AHEAD - 2)}}, f"at position {S}"),
        ({"thoughts": {0: [5]}}, f"a thought has 1 tokens; give {N_AHEAD - 2}"),
        ({"thoughts": {0: [10**6] * (N_AHEAD - 2)}}, "a thought has token 1000000"),
        ({"labels": [1]}, f"{S} tokens and 1 labels; give a label for each"),
        ({"before_logprob": [-1.0]}, f"{S} tokens and 1 of before_logprob; give one for each"),
    ]:
        with pytest.raises(SettingsError, match=said):
            trace(thinker(), TOKENIZER, [TextToTrace(ids=IDS, **text)], TraceSettings())  # type: ignore[arg-type]
    mixed = [TextToTrace(ids=IDS), TextToTrace(ids=IDS, is_own=True)]
    with pytest.raises(SettingsError, match="some texts are the model's own and others are not; trace them apart"):
        trace(thinker(), TOKENIZER, mixed, TraceSettings())
    with pytest.raises(SettingsError, match="there is no text to trace"):
        trace(thinker(), TOKENIZER, [], TraceSettings())


def test_generated_thoughts_that_ended_early_are_traced_as_they_were() -> None:
    model = tiny_model(
        base={"vocab_size": 300, "pad_token_id": None, "eos_token_id": None}, n_ahead=6, learn_to_end=True
    )
    torch.manual_seed(0)
    found = model.inspect("some words", byte_tokenizer(), generate=8, thought_temperature=1.0)
    lengths = [len(thought) for thought in found.columns["thought_ids"] if thought is not None]
    assert len(set(lengths)) > 1
    assert max(lengths) <= 4
    assert [len(each) for each in found.columns["thought_logprob"] if each is not None] == lengths
    refused = TextToTrace(ids=[5, 6, 7], thoughts={1: [5, 6]})
    with pytest.raises(SettingsError, match="a thought has 2 tokens; give 3"):
        trace(tiny_model(n_ahead=5), byte_tokenizer(), [refused], TraceSettings())
