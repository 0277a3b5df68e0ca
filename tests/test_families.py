"""Every family of base model equals the plain loop: padded on either side, cached or in parts, with gradients.

The comparison is proved to bite: each deliberate error of `ERRORS` must make it fail.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import quietstar.objective
import quietstar.talk
from quietstar import QuietStarForCausalLM, QuietStarOutput, ThoughtEmbeddings, ThoughtGrid
from quietstar.attention import two_parts
from quietstar.base.logprob import Scored
from quietstar.base.trunk import Trunk
from quietstar.errors import UnsupportedModelError
from quietstar.learn import Labels
from tests.plain_loop import Plain, mismatches, plain_loop
from tests.tiny import FAMILIES, WINDOWED, random_thoughts, texts, tiny_base, tiny_model, to_left

LENGTHS = (8, 3, 5)
"""tokens in the three rows; windows are 5"""
BACKENDS = ("dense", "split")
MODES = ("without gradient", "cached", "in parts")
"""how the model runs: sampling steps kept, branches over the cached base pass, a few columns at a time"""
OF_EACH_POSITION = {"logits": 1, "base_nll": 1, "talk_nll": 2, "mixing_weight": 2, "thought_logprob": 2}
OF_EACH_POSITION |= {"reward": 2, "advantage": 2}
"""field -> its dimension S"""


@dataclass
class Case:
    model: QuietStarForCausalLM
    inputs: dict[str, Tensor]
    """padded on the right, with thoughts"""
    plain: Plain
    gradients: dict[str, Tensor]
    """of nll + policy_loss"""


@cache
def case_of(family: str) -> Case:
    settings = dict(n_ahead=5, n_ahead_talk=3, n_passes=2, policy_weight=1.0, reinforce_temperature=3.0)
    model = tiny_model(family, **settings)
    inputs = texts(*LENGTHS)
    inputs["thoughts"] = random_thoughts(model, len(LENGTHS), max(LENGTHS), P=2)
    plain = plain_loop(model, **inputs, n_ahead_talk=3)
    return Case(model, inputs, plain, gradients(model, plain))


def gradients(model: QuietStarForCausalLM, losses: Plain | QuietStarOutput) -> dict[str, Tensor]:
    """Parameter name -> gradient of nll + policy_loss, 0 where none arrives."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(losses.nll + losses.policy_loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(named[name]) if gradient is None else gradient
        for name, gradient in zip(named, found, strict=True)
    }


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Gradients further apart than a thousandth of the largest entry, with how many times that."""
    apart = {}
    for name, theirs in expected.items():
        times = float((found[name] - theirs).abs().max()) / (1e-3 * float(theirs.abs().max()) + 1e-5)
        if not times <= 1:
            apart[name] = times
    return apart


def padded(case: Case, left: bool) -> tuple[dict[str, Tensor], Plain]:
    """Inputs and expected outputs, padded on one side."""
    if not left:
        return case.inputs, case.plain
    mask = case.inputs["attention_mask"]
    inputs = {name: to_left(value, mask, 2 if name == "thoughts" else 1) for name, value in case.inputs.items()}
    moved = {name: to_left(getattr(case.plain, name), mask, dim) for name, dim in OF_EACH_POSITION.items()}
    return inputs, dataclasses.replace(case.plain, **moved)


@contextmanager
def running(model: QuietStarForCausalLM, mode: str, backend: str = "split") -> Iterator[None]:
    """Run the model in one of MODES, and leave it as it was."""
    model.set_attention_backend(backend)
    if mode == "in parts":
        model.train()
        model.gradient_checkpointing_enable()
    try:
        with torch.set_grad_enabled(mode != "without gradient"):
            yield
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_equals_the_plain_loop(family: str, left: bool, mode: str, backend: str) -> None:
    case = case_of(family)
    inputs, plain = padded(case, left)
    with running(case.model, mode, backend):
        output = case.model(**inputs)
        assert mismatches(output, plain, inputs["attention_mask"]) == {}
        if mode == "without gradient":
            return
        assert differing(gradients(case.model, output), case.gradients) == {}


@cache
def long_case_of(family: str) -> Case:
    """Thoughts of 128 tokens: sampled without gradient, attended to in several blocks of steps."""
    model = tiny_model(family, base=dict(max_position_embeddings=256), n_ahead=130, n_ahead_talk=2, n_passes=2)
    model.config.policy_weight = 1.0
    inputs = texts(4, 3)
    inputs["thoughts"] = random_thoughts(model, 2, 4, P=2)
    plain = plain_loop(model, **inputs, n_ahead_talk=2)
    return Case(model, inputs, plain, gradients(model, plain))


LONG = ["llama", "mistral-window", "gemma3_text"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", LONG)
def test_long_thoughts_equal_the_plain_loop(family: str, mode: str) -> None:
    case = long_case_of(family)
    with running(case.model, mode):
        output = case.model(**case.inputs)
        assert mismatches(output, case.plain, case.inputs["attention_mask"]) == {}
        if mode != "without gradient":
            assert differing(gradients(case.model, output), case.gradients) == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", LONG)
def test_long_thoughts_are_sampled_as_they_are_scored(family: str, mode: str) -> None:
    """Step by step over growing memory, and then as given: the same states, the same probabilities."""
    model, inputs = (
        long_case_of(family).model,
        {k: v for k, v in long_case_of(family).inputs.items() if k != "thoughts"},
    )
    with running(model, mode):
        sampled = model(**inputs, thought_temperature=1.0, n_passes=2)
        given = model(**inputs, thoughts=sampled.thoughts)
        scored = given.thought_logprob.detach() != 0
        assert scored.any()
        torch.testing.assert_close(sampled.drawn_logprob[scored], given.thought_logprob[scored], rtol=1e-3, atol=1e-3)
        for name in ("logits", "talk_nll", "thought_logprob"):
            torch.testing.assert_close(getattr(sampled, name), getattr(given, name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_cached_path_equal_those_made_in_parts(family: str) -> None:
    case = case_of(family)
    inputs, _ = padded(case, left=True)
    found = []
    for mode in MODES[1:]:
        with running(case.model, mode):
            found.append(gradients(case.model, case.model(**inputs)))
    cached, in_parts = found
    assert differing(cached, in_parts) == {}
    for name, gradient in in_parts.items():
        assert gradient.abs().max() > 0, f"nothing reaches {name}"


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_equal_rows_alone(family: str, left: bool) -> None:
    """Also where the thought is the model's own, written greedily."""
    model = case_of(family).model
    batch = texts(*LENGTHS, left=left)
    del batch["labels"]
    with torch.no_grad():
        together = model(**batch)
        for b, n in enumerate(LENGTHS):
            real = batch["attention_mask"][b].bool()
            alone = model(batch["input_ids"][b, real][None])
            tolerance = 1e-4 * float(alone.logits.abs().max()) + 1e-4
            torch.testing.assert_close(together.logits[b, real], alone.logits[0], rtol=0, atol=tolerance)
            assert torch.equal(together.thoughts[b][:, real], alone.thoughts[0]), f"row of {n}"


@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_forgets(family: str) -> None:
    """What the windowed cases compare would be the same without a window if the texts were too short."""
    base_lm = case_of(family).model.base_lm
    input_ids = texts(*LENGTHS)["input_ids"][:1]
    with torch.no_grad():
        wide = tiny_base(family, sliding_window=100)(input_ids).logits
        difference = (wide - base_lm(input_ids).logits).abs().amax((0, 2))
    assert (difference[:5] < 1e-4).all()
    assert (difference[5:] > 0.1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_predicts_exactly_as_its_base(family: str) -> None:
    """With and without gradient, with and without labels."""
    base_lm = tiny_base(family)
    model = QuietStarForCausalLM.from_base(base_lm, n_ahead=4, n_ahead_talk=2)
    inputs = texts(*LENGTHS)
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    real = inputs["attention_mask"].bool()
    for with_gradient, given in product((False, True), (inputs, without_labels)):
        with torch.set_grad_enabled(with_gradient):
            own = base_lm(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            assert torch.equal(model(**given).logits[real], own[real])


# ---------------------------------------------------------------------- the comparison bites


def later_position(patch: pytest.MonkeyPatch) -> None:
    right = ThoughtGrid.branch_position_ids
    patch.setattr(ThoughtGrid, "branch_position_ids", lambda grid, steps: right(grid, steps) + 1)


def _base_seen(patch: pytest.MonkeyPatch, wrong: Callable[[ThoughtGrid, Tensor], Tensor]) -> None:
    right = ThoughtGrid.sees_base
    patch.setattr(ThoughtGrid, "sees_base", lambda grid, *given: wrong(grid, right(grid, *given)))


def one_base_token_too_many(patch: pytest.MonkeyPatch) -> None:
    def wrong(grid: ThoughtGrid, seen: Tensor) -> Tensor:
        following = (grid.columns + 1).clamp(max=grid.n_base - 1)
        return seen | torch.nn.functional.one_hot(following, grid.n_base).bool()

    _base_seen(patch, wrong)


def one_base_token_too_few(patch: pytest.MonkeyPatch) -> None:
    _base_seen(patch, lambda grid, seen: seen & ~torch.nn.functional.one_hot(grid.columns, grid.n_base).bool())


def a_neighbours_branch(patch: pytest.MonkeyPatch) -> None:
    right = ThoughtGrid.sees

    def wrong(grid: ThoughtGrid, steps: range, window: int | None = None) -> Tensor:
        seen = right(grid, steps, window)
        base, branches = seen[..., : grid.n_base], seen[..., grid.n_base :]
        return torch.cat([base, branches | branches.roll(1, dims=2)], dim=-1)

    patch.setattr(ThoughtGrid, "sees", wrong)
    own = two_parts._Parts._own
    patch.setattr(two_parts._Parts, "_own", lambda *given: own(*given).roll(1, dims=0))


def one_step_too_many(patch: pytest.MonkeyPatch) -> None:
    right = ThoughtGrid.sees_own_branch
    patch.setattr(ThoughtGrid, "sees_own_branch", lambda *given: right(*given) | right(*given).roll(1, dims=1))


def a_window(by: int) -> Callable[[pytest.MonkeyPatch], None]:
    def patch_it(patch: pytest.MonkeyPatch) -> None:
        for sight in ("sees_base", "sees_own_branch"):
            right = getattr(ThoughtGrid, sight)

            def wrong(
                grid: ThoughtGrid, steps: range, window: int | None = None, right: Callable[..., Tensor] = right
            ) -> Tensor:
                return right(grid, steps, None if window is None else window + by)

            patch.setattr(ThoughtGrid, sight, wrong)

    return patch_it


def visible_padding(patch: pytest.MonkeyPatch) -> None:
    right = ThoughtGrid.sees_base

    def wrong(grid: ThoughtGrid, *given: object) -> Tensor:
        return right(dataclasses.replace(grid, base_mask=torch.ones_like(grid.base_mask)), *given)

    patch.setattr(ThoughtGrid, "sees_base", wrong)


def end_for_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ThoughtEmbeddings, "start", ThoughtEmbeddings.end)


def unscaled_embeddings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ThoughtEmbeddings, "end", property(lambda embeddings: embeddings.end_embedding))


def mixing_with_the_columns_state(patch: pytest.MonkeyPatch) -> None:
    right, gather = quietstar.talk.mix_branches, ThoughtGrid.gather_columns

    def wrong(*given: object) -> object:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(ThoughtGrid, "gather_columns", lambda grid, values, ahead=0: gather(grid, values))
            return right(*given)

    patch.setattr(quietstar.talk, "mix_branches", wrong)


def true_tokens_one_late(patch: pytest.MonkeyPatch) -> None:
    right = quietstar.talk.branch_embeds

    def wrong(thinker: object, grid: object, thoughts: object, base: Tensor, *given: int) -> Tensor:
        return right(thinker, grid, thoughts, base.roll(-1, dims=1), *given)

    patch.setattr(quietstar.talk, "branch_embeds", wrong)


def swapped_weights(patch: pytest.MonkeyPatch) -> None:
    right = quietstar.talk.mix_branches

    def wrong(grid: ThoughtGrid, head: object, h_base: Tensor, branches: object) -> object:
        return right(grid, lambda without, after: 1 - head(without, after), h_base, branches)

    patch.setattr(quietstar.talk, "mix_branches", wrong)


def reward_without_looking_ahead(patch: pytest.MonkeyPatch) -> None:
    def wrong(base_nll: Tensor, talk_nll: Tensor, labels: Labels) -> Tensor:
        gain = base_nll.detach()[:, None, :, None] - talk_nll.detach()
        return (gain * labels.talk[:, None]).sum(-1)

    patch.setattr(quietstar.objective.learn, "reward", wrong)


def policy_at_sampling_temperature(patch: pytest.MonkeyPatch) -> None:
    def wrong(hidden: Tensor, tokens: Tensor, where: Tensor, weights: Tensor, *how: Any) -> Scored:
        return Scored(hidden, tokens, where, weights, 1.0, *how[1:])

    patch.setattr(quietstar.objective, "Scored", wrong)


ERRORS = {
    "position ids one later": ("llama", later_position),
    "learned position ids one later": ("gpt2", later_position),
    "sees one base token too many": ("llama", one_base_token_too_many),
    "sees one base token too few": ("llama", one_base_token_too_few),
    "sees its neighbour's branch": ("llama", a_neighbours_branch),
    "sees a step of its branch too many": ("llama", one_step_too_many),
    "window one wider": ("mistral-window", a_window(+1)),
    "window one narrower": ("mistral-window", a_window(-1)),
    "window one wider where windows alternate": ("gemma3_text", a_window(+1)),
    "left padding is visible": ("llama", visible_padding),
    "end in place of start": ("llama", end_for_start),
    "embedding without its factor": ("llama", unscaled_embeddings),
    "mixes with h_base[i] in place of h_base[i+k]": ("llama", mixing_with_the_columns_state),
    "true tokens one late": ("llama", true_tokens_one_late),
    "mixing weight the other way round": ("llama", swapped_weights),
    "reward compares with base_nll[i]": ("llama", reward_without_looking_ahead),
    "policy term at the sampling temperature": ("llama", policy_at_sampling_temperature),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", ERRORS)
def test_a_deliberate_error_is_noticed(error: str, mode: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ten tolerances at least."""
    family, make_it = ERRORS[error]
    case = case_of(family)
    inputs, plain = padded(case, left=True)
    with running(case.model, mode, backend):
        assert mismatches(case.model(**inputs), plain, inputs["attention_mask"]) == {}
        make_it(monkeypatch)
        found = mismatches(case.model(**inputs), plain, inputs["attention_mask"])
    assert found, "the plain loop's comparison let a wrong model pass"
    assert max(found.values()) > 10


def detached_base_keys(patch: pytest.MonkeyPatch) -> None:
    right = Trunk.branch_cache

    def wrong(*given: object) -> object:
        made = right(*given)
        for layer in made.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return made

    patch.setattr(Trunk, "branch_cache", wrong)


def a_reward_with_gradient(patch: pytest.MonkeyPatch) -> None:
    def wrong(base_nll: Tensor, talk_nll: Tensor, labels: Labels) -> Tensor:
        M, S = talk_nll.shape[-1], base_nll.shape[1]
        padded = torch.nn.functional.pad(base_nll, (0, M))
        ahead = torch.stack([padded[:, k : k + S] for k in range(M)], dim=-1)
        return ((ahead[:, None] - talk_nll) * labels.talk[:, None]).sum(-1)

    patch.setattr(quietstar.objective.learn, "reward", wrong)


@pytest.mark.parametrize("make_it", [detached_base_keys, a_reward_with_gradient])
def test_an_error_of_gradients_alone_is_noticed(
    make_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value is right."""
    case = case_of("llama")
    inputs, plain = padded(case, left=True)
    make_it(monkeypatch)
    with running(case.model, "cached"):
        output = case.model(**inputs)
        assert mismatches(output, plain, inputs["attention_mask"]) == {}
        assert max(differing(gradients(case.model, output), case.gradients).values()) > 10


# ---------------------------------------------------------------------- families that cannot be served

_SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
UNSUPPORTED = {
    "t5": {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "mamba": dict(_SMALL, state_size=4),
    "rwkv": dict(_SMALL, attention_hidden_size=32, context_length=64),
    "bloom": {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "lfm2": dict(
        _SMALL,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    ),
}


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_a_family_that_cannot_be_served_is_refused_by_name(family: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **UNSUPPORTED[family])
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    base_lm = auto.from_config(config)
    with pytest.raises(UnsupportedModelError, match=family) as refusal:
        QuietStarForCausalLM.from_base(base_lm)
    assert "\n" not in str(refusal.value)
