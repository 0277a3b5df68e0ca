"""Figures are plain means over all labels of all batches, whatever the batches' sizes."""

import pytest
import torch

from quietstar import QuietStarOutput
from quietstar.output import ENDED
from quietstar.training.tally import Tally, labels_of
from tests.tiny import texts, tiny_model

BATCHES = [texts(9, 3, 2), texts(17, seed=1)]


def forward(batch: dict, *, train: bool = True, **settings) -> QuietStarOutput:
    model = tiny_model("llama", **({"n_ahead": 4, "n_ahead_talk": 3, "n_passes": 2} | settings)).train(train)
    torch.manual_seed(0)
    with torch.set_grad_enabled(train):  # a training step has gradients, and figures of them
        return model(**batch, loss_only=True)


def tally_of(batches: list[dict], outputs: list[QuietStarOutput], n_ahead_talk: int = 3) -> Tally:
    tally = Tally()
    for batch, output in zip(batches, outputs, strict=True):
        tally.add(output, labels_of(batch, n_ahead_talk), batch["attention_mask"].sum())
    return tally


def by_hand(batches: list[dict], outputs: list[QuietStarOutput], M: int, base_loss_weight: float) -> dict[str, float]:
    """Every entry that counts, one after another in lists, and then their means."""
    at_columns, base, weights, rewards, spoken, surprise, equal, distinct, lengths = [], [], [], [], [], [], [], 0, []
    nll_gradient = policy_gradient = 0.0
    talk: list[list[float]] = [[] for _ in range(M)]
    for batch, output in zip(batches, outputs, strict=True):
        B, P, S, K = output.thought_logprob.shape
        different = set()
        if output.nll_gradient is not None:
            nll_gradient += float(output.nll_gradient)
            policy_gradient += float(output.policy_gradient)
        for b in range(B):
            n = int(batch["attention_mask"][b].sum())
            think_at = batch.get("think_at", torch.ones(B, S))[b]
            base += [float(output.base_nll[b, i]) for i in range(n - 1)]
            for i in range(n - 1):
                if not think_at[i]:
                    continue
                if n - 1 - i >= M:
                    equal.append(
                        float(all(abs(output.reward[b, p, i] - output.reward[b, 0, i]) < 1e-5 for p in range(P)))
                    )
                for p in range(P):
                    at_columns.append(float(output.base_nll[b, i]))
                    for k in range(min(M, n - 1 - i)):
                        talk[k].append(float(output.talk_nll[b, p, i, k]))
                        weights.append(float(output.mixing_weight[b, p, i, k]))
                    thought = tuple(output.thoughts[b, p, i].tolist())
                    different.add(thought)
                    lengths.append(K - thought.count(ENDED))
                    if output.drawn_logprob is not None:  # an end before the last place is drawn, too
                        surprise += (-output.drawn_logprob[b, p, i, : lengths[-1] + 1]).tolist()
                    if n - 1 - i >= M:
                        rewards.append(float(output.reward[b, p, i]))
                        advantage = float(output.advantage[b, p, i])
                        spoken += [-advantage * float(output.thought_logprob[b, p, i, j]) for j in range(K)]
        distinct += len(different)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    talk_means = [mean(values) for values in talk]
    return {
        "nll": base_loss_weight * mean(base) + (1 - base_loss_weight) * mean(talk_means),
        "base_nll": mean(base),
        **{f"talk_nll_{k}": value for k, value in enumerate(talk_means)},
        "thought_gain": mean(at_columns) - talk_means[0],
        "policy_loss": mean(spoken),
        "reward_mean": mean(rewards),
        "reward_std": mean([(reward - mean(rewards)) ** 2 for reward in rewards]) ** 0.5,
        "thought_helped": mean([float(reward > 0) for reward in rewards]),
        "equal_rewards": mean(equal),
        "mixing_weight": mean(weights),
        "mixing_weight_rms": mean([weight**2 for weight in weights]) ** 0.5,
        "mixing_weight_std": mean([(weight - mean(weights)) ** 2 for weight in weights]) ** 0.5,
        "distinct_thoughts": distinct / len(lengths),
        "thought_length": mean(lengths),
        **({"thought_entropy": mean(surprise)} if surprise else {}),
        **({"policy_share": policy_gradient**0.5 / (nll_gradient**0.5 + policy_gradient**0.5)} if nll_gradient else {}),
    }


@pytest.mark.parametrize("base_loss_weight", [0.5, 0.0, 1.0])
@pytest.mark.parametrize("train", [True, False], ids=["two thoughts", "one thought"])
@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "think_at"])
@pytest.mark.parametrize("learn_to_end", [False, True], ids=["one length", "early ends"])
def test_figures_are_means_over_all_labels(learn_to_end, everywhere, train, base_loss_weight):
    batches = [dict(batch) for batch in BATCHES]
    if not everywhere:
        for batch in batches:
            batch["think_at"] = batch["input_ids"] % 3 > 0
    outputs = [forward(batch, train=train, learn_to_end=learn_to_end, n_ahead=5) for batch in batches]
    tally = tally_of(batches, outputs)
    figures = tally.figures(base_loss_weight)
    assert (figures["thought_length"] < 3) == learn_to_end
    expected = by_hand(batches, outputs, 3, base_loss_weight)
    assert figures == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert list(figures) == list(expected)
    assert tally.n_tokens == 9 + 3 + 2 + 17
    assert len({round(value, 4) for value in figures.values()}) >= len(figures) - 3, "figures that say something"


def test_the_mean_of_means_is_another_figure():
    outputs = [forward(batch) for batch in BATCHES]
    whole = tally_of(BATCHES, outputs).figures(0.5)
    parts = [tally_of([batch], [output]).figures(0.5) for batch, output in zip(BATCHES, outputs, strict=True)]
    for name in ("base_nll", "talk_nll_0", "reward_mean", "mixing_weight"):
        assert abs(whole[name] - (parts[0][name] + parts[1][name]) / 2) > 1e-3, name


def test_one_batch_has_the_figures_of_its_forward_pass():
    output = forward(BATCHES[0])
    figures = tally_of(BATCHES[:1], [output]).figures(0.5)
    assert figures["nll"] == pytest.approx(float(output.nll), rel=1e-5)
    assert figures["policy_loss"] == pytest.approx(float(output.policy_loss), rel=1e-5)


def test_rows_padded_on_the_left_have_the_same_figures():
    left = [texts(9, 3, 2, left=True), texts(17, seed=1, left=True)]
    right = []
    for batch in left:  # the same rows, moved
        n_padded = (batch["attention_mask"] == 0).sum(1).tolist()
        moved = {
            name: torch.stack([row.roll(-n) for row, n in zip(values, n_padded, strict=True)])
            for name, values in batch.items()
        }
        right.append(moved)
    figures = [
        tally_of(batches, [forward(batch, train=False) for batch in batches]).figures(0.5) for batches in (left, right)
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4, abs=1e-5)


def test_ranks_add_up():
    outputs = [forward(batch) for batch in BATCHES]
    alone = tally_of(BATCHES, outputs).figures(0.5)
    ours = tally_of(BATCHES[:1], outputs[:1])
    other = tally_of(BATCHES[1:], outputs[1:])
    seen = []
    other.figures(0.5, lambda sums: seen.append(sums) or sums[None])
    together = ours.figures(0.5, lambda sums: torch.stack([sums, seen[0]]))
    assert together == pytest.approx(alone, rel=1e-9)


def test_thoughts_without_sampled_tokens_have_no_policy_loss():
    outputs = [forward(batch, n_ahead=2) for batch in BATCHES]
    figures = tally_of(BATCHES, outputs).figures(0.5)
    assert figures["policy_loss"] == 0
    assert figures["reward_std"] > 0


def test_texts_too_short_for_a_reward_have_none():
    batch = texts(3, 3)
    figures = tally_of([batch], [forward(batch)]).figures(0.5)
    assert (figures["reward_mean"], figures["reward_std"], figures["thought_helped"]) == (0, 0, 0)
    assert figures["talk_nll_2"] == 0
    assert figures["talk_nll_1"] > 0


def test_a_tally_is_false_until_something_is_added():
    tally = Tally()
    assert not tally
    assert tally.n_tokens == 0
    assert tally_of(BATCHES[:1], [forward(BATCHES[0])])
