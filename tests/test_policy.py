"""Policies: what each decides, how they are written, and what they are told."""

import pytest
import torch
from torch import Tensor

from quietstar.errors import SettingsError
from quietstar.policy import Moment, ThinkPolicy, entropy, margin
from tests.tiny import texts, tiny_model

LOGITS = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])


def moment(n_thoughts: tuple[int, ...] = (0, 0), **how: object) -> Moment:
    """Four positions, two in each row; the base states are their own logits."""
    return Moment(
        rows=torch.tensor([0, 0, 1, 1]),
        position_ids=torch.tensor([2, 3, 0, 1]),
        n_thoughts=torch.tensor(n_thoughts),
        h_base=LOGITS,
        to_logits=lambda states: states,
        to_weight=lambda without, after: (without[:, :1] + after[:, :1]) / 4,
        **how,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("always", [1, 1, 1, 1]),
        ("never", [0, 0, 0, 0]),
        ("every:2", [0, 1, 0, 1]),
        ("every:3", [1, 0, 0, 0]),
        ("probability:0", [0, 0, 0, 0]),
        ("probability:1", [1, 1, 1, 1]),
        ("entropy:1.3", [1, 0, 0, 0]),
        ("entropy:0", [1, 1, 1, 1]),
        ("margin:0", [1, 0, 1, 0]),
        ("margin:0.5", [1, 0, 1, 1]),
        ("mixing_head:1.5", [0, 1, 1, 0]),
        ("budget:0", [0, 0, 0, 0]),
        ("budget:1", [1, 0, 1, 0]),
        ("every:2,entropy:0.9", [0, 0, 0, 1]),
        ("budget:1, every:2", [0, 1, 0, 1]),
    ],
)
def test_what_is_decided(policy: str, expected: list[int]) -> None:
    """By hand; a budget counts what the other rules agree to, wherever it is written."""
    assert ThinkPolicy.parse(policy).decide(moment()).think.long().tolist() == expected


def test_a_budget_counts_earlier_thoughts() -> None:
    """Of each row by itself."""
    assert ThinkPolicy.parse("budget:3").decide(moment((2, 3))).think.tolist() == [True, False, False, False]


def test_measures() -> None:
    """Entropy in nats and the margin in probability, against plain sums."""
    p = LOGITS.softmax(-1)
    torch.testing.assert_close(entropy(LOGITS), -(p * p.log()).sum(-1))
    ordered = p.sort(-1, descending=True).values
    torch.testing.assert_close(margin(LOGITS), ordered[:, 0] - ordered[:, 1])


def test_many_states_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result, and without [N, V] being kept."""
    whole = moment().look(entropy)
    monkeypatch.setattr("quietstar.policy.STATES_AT_ONCE", 3)
    in_pieces = moment()
    assert torch.equal(in_pieces.look(entropy), whole)
    assert in_pieces._base_logits is None


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "sometimes",
        "entropie:2",
        "entropy",
        "entropy:",
        "entropy:high",
        "entropy:-1",
        "entropy:nan",
        "entropy:inf",
        "margin:2",
        "every:0",
        "every:1.5",
        "probability:1.1",
        "budget:-1",
        "always:2",
        "entropy:2,,budget:1",
        3,
        None,
    ],
    ids=repr,
)
def test_what_is_no_policy_is_refused_in_one_line(policy: object) -> None:
    """Saying what was given, and what could be."""
    with pytest.raises(SettingsError, match="think") as raised:
        ThinkPolicy.parse(policy)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_the_nearest_name_is_offered() -> None:
    """For a slip of the pen."""
    with pytest.raises(SettingsError, match="did you mean entropy"):
        ThinkPolicy.parse("entropie:2")


@pytest.mark.parametrize(
    "wrong", [True, torch.ones(4), torch.ones(3, dtype=torch.bool)], ids=["bool", "float", "shape"]
)
def test_a_function_must_return_bools(wrong: object) -> None:
    """One for each position."""
    with pytest.raises(SettingsError, match=r"return \[4\] bool"):
        ThinkPolicy.parse(lambda moment: wrong).decide(moment())


def test_policies_are_written_as_they_are_read() -> None:
    """So that a result can say which one it used."""
    for text in ("always", "entropy:2.5", "every:4,budget:16"):
        assert str(ThinkPolicy.parse(text)) == text
    assert str(ThinkPolicy.parse(entropy)) == "entropy"


@pytest.mark.parametrize("policy", ["entropy:2.5", "margin:0.2", "mixing_head:0.3", "every:3", "budget:4,entropy:2"])
def test_a_forward_pass_thinks_where_the_policy_says(policy: str) -> None:
    """Over a grid: mixed logits there, the base model's own elsewhere."""
    model, inputs = tiny_model("qwen3", n_ahead=4), texts(9, 6)
    inputs.pop("labels")
    with torch.no_grad():
        everywhere, base = model(**inputs), model.base_lm(**inputs).logits
        chosen = model(**inputs, think=policy)
    real = inputs["attention_mask"].bool()
    thought = (chosen.logits - base).abs().amax(-1) > 1e-3
    assert 0 < thought[real].sum() < real.sum()
    torch.testing.assert_close(chosen.logits[thought], everywhere.logits[thought], rtol=1e-4, atol=1e-3)
    expected = torch.zeros_like(thought)
    rows, columns = real.nonzero(as_tuple=True)
    h_base = model.base_lm.base_model(**inputs).last_hidden_state
    told = Moment(
        rows=rows,
        position_ids=columns,
        n_thoughts=torch.zeros(2, dtype=torch.long),
        h_base=h_base[rows, columns],
        to_logits=model.base_lm.lm_head,
        to_weight=model.mixing_head,
    )
    expected[rows, columns] = ThinkPolicy.parse(policy).decide(told).think
    assert torch.equal(thought & real, expected)


def test_a_function_is_shown_positions_and_predictions() -> None:
    """Everything that it may want to decide by."""
    seen: list[Moment] = []

    def nowhere(moment: Moment) -> Tensor:
        seen.append(moment)
        assert moment.look(entropy).shape == moment.rows.shape
        return torch.zeros_like(moment.rows, dtype=torch.bool)

    model, inputs = tiny_model(n_ahead=4), texts(5, 3)
    inputs.pop("labels")
    model(**inputs, think=nowhere)
    assert seen[0].rows.tolist() == [0] * 5 + [1] * 3
    assert seen[0].position_ids.tolist() == [*range(5), *range(3)]
    assert seen[0].h_base.shape == (8, 32)
