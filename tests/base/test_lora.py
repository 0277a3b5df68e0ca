"""Low-rank adapters: what trains, what is saved, and that merging them changes no prediction."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoModelForCausalLM

from quietstar import QuietStarForCausalLM
from quietstar.base.lora import without_adapters
from quietstar.errors import SettingsError
from quietstar.output import CACHE
from tests.tiny import make_thoughtful, random_thoughts, texts, tiny_base

LORA = {"r": 4, "lora_alpha": 8}
FAMILIES = ["llama", "gpt2", "gemma3_text", "mistral-window"]


def adapted(family: str = "llama", lora: dict | None = None, **settings: object) -> QuietStarForCausalLM:
    torch.manual_seed(0)
    return QuietStarForCausalLM.from_base(tiny_base(family), lora=lora or dict(LORA), n_ahead=4, **settings)


@torch.no_grad()
def perturb(model: QuietStarForCausalLM) -> None:
    """As if it had been trained: every parameter that trains is elsewhere."""
    make_thoughtful(model)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)


def logits(model: QuietStarForCausalLM) -> Tensor:
    inputs = texts(8, 4, left=True)
    with torch.no_grad():
        return model(inputs["input_ids"], inputs["attention_mask"]).logits[inputs["attention_mask"].bool()]


def trains(model: QuietStarForCausalLM) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing(family: str) -> None:
    inputs = texts(8, 4)
    real = inputs["attention_mask"].bool()
    own = tiny_base(family)(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(adapted(family)(**inputs).logits[real], own[real])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in parts"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_mixing_head_and_thought_embeddings_train_and_nothing_else(family: str, checkpointing: bool) -> None:
    model = adapted(family, n_passes=2).train()
    names = set(trains(model))
    small = {name for name, _ in model.named_parameters() if name.startswith(("mixing_head", "thought_embeddings"))}
    adapters = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(small) == 7
    assert names == small | adapters
    for layer in range(2):
        assert any(f".{layer}." in name for name in adapters)

    make_thoughtful(model)  # a zero mixing head would keep gradients from all before it
    with torch.no_grad():
        for name in adapters:
            if "lora_B" in name:  # zero at first, and with it the gradient of lora_A
                model.get_parameter(name).fill_(0.01)
    if checkpointing:
        model.gradient_checkpointing_enable()
    output = model(**texts(8, 5))
    (output.nll + output.policy_loss).backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert reached == (name in names), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapted_model_comes_back(family: str, tmp_path: Path) -> None:
    model = adapted(family)
    before = logits(model)
    perturb(model)
    expected = logits(model)
    assert (expected - before).abs().max() > 0.1
    model.save_pretrained(tmp_path)
    for load in (QuietStarForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        loaded = load(tmp_path)
        assert torch.equal(logits(loaded), expected)
        assert loaded.config.lora["r"] == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_adapted_model_trains_what_it_trained_before(family: str, tmp_path: Path) -> None:
    model = adapted(family)
    model.save_pretrained(tmp_path)
    assert set(trains(QuietStarForCausalLM.from_pretrained(tmp_path))) == set(trains(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_changes_no_prediction_and_leaves_a_plain_model(family: str, tmp_path: Path) -> None:
    model = adapted(family)
    perturb(model)
    expected = logits(model)
    tolerance = 1e-5 * float(expected.abs().max())
    model.merge_lora()
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=tolerance)
    assert model.config.lora is None
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.merge_lora()  # merging twice is harmless

    model.save_pretrained(tmp_path / "thinking")
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path / "thinking")
    assert torch.equal(logits(loaded), logits(model))
    model.base_lm.save_pretrained(tmp_path / "base")
    base_lm = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert base_lm.state_dict().keys() == tiny_base(family).state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_adapters_a_base_model_is_what_it_was(family: str) -> None:
    """Bit by bit; and afterwards everything is as it was, whatever happens in between."""
    model = adapted(family)
    perturb(model)
    model.get_parameter(next(iter(trains(model)))).requires_grad = False  # a choice of somebody else's
    trained, was = set(trains(model)), logits(model)
    inputs = texts(8, 4)
    untouched = tiny_base(family)(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    with suppress(KeyError), without_adapters(model.base_lm):
        off = model.base_lm(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        assert torch.equal(off, untouched)
        assert set(trains(model)) == trained
        raise KeyError
    assert torch.equal(logits(model), was)
    assert set(trains(model)) == trained
    on = model.base_lm(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert not torch.equal(on, untouched)


def test_adapters_that_are_off_already_stay_off() -> None:
    model = adapted()
    perturb(model)
    on = logits(model)
    with without_adapters(model.base_lm):
        off = logits(model)
        with without_adapters(model.base_lm):
            assert torch.equal(logits(model), off)
        assert torch.equal(logits(model), off)
    assert torch.equal(logits(model), on)
    assert not torch.equal(off, on)


def test_adapters_stay_float32_in_a_bfloat16_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny_base().save_pretrained(tmp_path / "base")
    model = QuietStarForCausalLM.from_base(tmp_path / "base", lora=dict(LORA), n_ahead=4, dtype=torch.bfloat16)
    perturb(model)
    assert {parameter.dtype for parameter in trains(model).values()} == {torch.float32}
    model.save_pretrained(tmp_path)
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert loaded.get_parameter(name).dtype == parameter.dtype, name
    assert torch.equal(logits(loaded), logits(model))
    again = QuietStarForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits(again), logits(model))


def test_chosen_modules_alone_are_adapted(tmp_path: Path) -> None:
    model = adapted(lora={"r": 2, "target_modules": ["q_proj"]})
    names = [name for name in trains(model) if ".lora_" in name]
    assert len(names) == 4
    assert all(".q_proj." in name for name in names)
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.lora["target_modules"] == ["q_proj"]
    assert torch.equal(logits(loaded), logits(model))


def test_the_lm_head_is_left_alone() -> None:
    model = adapted()
    assert not any("lm_head" in name for name in trains(model))


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"rank": 4}, "rank"),
        ({"r": 0}, "positive"),
        ({"r": 4, "target_modules": ["nothing_of_that_name"]}, "nothing_of_that_name"),
        ({"r": 4, "modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_bad_settings_are_refused(lora: dict, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refusal:
        adapted(lora=lora)
    assert "\n" not in str(refusal.value)


def test_dropout_of_adapters_needs_no_care() -> None:
    """It is off in evaluation, and training runs with it."""
    model = adapted(lora={**LORA, "lora_dropout": 0.5})
    perturb(model)
    assert torch.equal(logits(model), logits(model))
    assert torch.isfinite(model.train()(**texts(8, 5)).loss)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_embeddings_that_are_the_lm_head_too_are_not_adapted(module: str) -> None:
    """And the base model is left as it was; where they are two matrices each can be adapted."""
    lora = {**LORA, "target_modules": ["q_proj", module]}
    base_lm = tiny_base("llama", tie_word_embeddings=True)
    tokens = texts(6)["input_ids"]
    before = base_lm(tokens).logits
    with pytest.raises(SettingsError, match="are one matrix") as refusal:
        QuietStarForCausalLM.from_base(base_lm, lora=lora)
    assert "\n" not in str(refusal.value)
    assert torch.equal(base_lm(tokens).logits, before)
    assert not any("lora" in name for name, _ in base_lm.named_modules())
    model = adapted(lora=lora)
    perturb(model)
    expected = logits(model)
    model.merge_lora()
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- adapters of branches


def with_branch_adapters(family: str = "llama", **settings: object) -> QuietStarForCausalLM:
    """Trained, as it were: adapters, mixing head and thought embeddings are elsewhere; the base model is not."""
    torch.manual_seed(0)
    model = QuietStarForCausalLM.from_base(
        tiny_base(family), branch_adapters=dict(LORA), **({"n_ahead": 4, "n_ahead_talk": 2} | settings)
    )
    make_thoughtful(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def branch_by_branch(model: QuietStarForCausalLM, ids: Tensor, thought: Tensor, n_true: int) -> Tensor:
    """[n_true, V] predictions after a thought at the end of ids [1, S]: text read without the branches' adapters, then
    each token of the branch by itself with them, by PEFT's own switch."""
    base_lm, embed = model.base_lm, model.get_input_embeddings()
    layers = [module for module in base_lm.modules() if isinstance(module, BaseTunerLayer)]

    def activate(*names: str) -> None:
        for layer in layers:
            layer.set_adapter([name for name in names if name in layer.scaling])

    own = ["default"] if model.config.lora is not None else []
    S = ids.shape[1] - n_true + 1
    text, rest = ids[:, :S], ids[:, S:]
    activate(*own)
    h_base = base_lm.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, S - 1 :]
    read = base_lm.base_model(input_ids=text, use_cache=True)
    cache = getattr(read, CACHE)
    start, end = model.thought_embeddings.start[None], model.thought_embeddings.end[None]
    branch = torch.cat([start, embed(thought), end, embed(rest[0])])
    activate(*own, "branch")
    states = [
        base_lm.base_model(inputs_embeds=each[None, None], use_cache=True, **{CACHE: cache}).last_hidden_state[0]
        for each in branch
    ]
    activate(*own)
    after = torch.cat(states[-n_true:])
    weight = model.mixing_head(h_base, after)
    return base_lm.get_output_embeddings()((1 - weight) * h_base + weight * after)


@pytest.mark.parametrize("lora", [None, dict(LORA)], ids=["alone", "beside lora"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_branches_run_with_their_adapters_and_the_text_without(family: str, lora: dict | None) -> None:
    model = with_branch_adapters(family, lora=lora)
    ids = texts(9)["input_ids"]
    thoughts = random_thoughts(model, 1, 9)
    output = model(ids, labels=ids, thoughts=thoughts)
    for i in (0, 4, 7):
        n_true = min(2, 9 - 1 - i)
        logits = branch_by_branch(model, ids[:, : i + n_true], thoughts[0, 0, i], n_true)
        nll = torch.nn.functional.cross_entropy(logits[:1], ids[:, i + 1])
        torch.testing.assert_close(output.talk_nll[0, 0, i, 0], nll, rtol=1e-4, atol=1e-4)
    off = with_branch_adapters(family, lora=lora)
    for name, parameter in off.named_parameters():
        if "lora_B.branch" in name:
            parameter.zero_()
    without = off(ids, labels=ids, thoughts=thoughts)
    assert torch.equal(output.base_nll, without.base_nll), "the base pass knows nothing of them"
    assert (output.talk_nll - without.talk_nll).abs().max() > 0.1, "and branches do"


@pytest.mark.parametrize("n_ahead", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_is_generated_with_adapters_of_branches_as_it_is_scored(family: str, n_ahead: int) -> None:
    """Cached, padded on the left; each token is the likeliest of a whole forward pass over a grid."""
    model = with_branch_adapters(family, n_ahead=n_ahead)
    inputs = {name: value for name, value in texts(6, 3, left=True).items() if name != "labels"}
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
    logits = model(written, attention_mask=mask).logits
    assert torch.equal(logits[:, 5:-1].argmax(-1), written[:, 6:])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in parts"])
def test_a_frozen_base_stays_what_it_is(checkpointing: bool) -> None:
    """Bit by bit, over steps that change predictions after thoughts."""
    model = with_branch_adapters(n_passes=2, policy_weight=1.0).train()
    model.freeze_base()
    names = set(trains(model))
    assert names == {
        name for name, _ in model.named_parameters() if ".branch" in name or not name.startswith("base_lm")
    }
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch, thoughts = texts(8, 5), random_thoughts(model, 2, 8, P=2)
    before = model(**batch, thoughts=thoughts)
    optimizer = torch.optim.AdamW(trains(model).values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch, loss_only=True).loss.backward()
        optimizer.step()
    assert all((parameter.grad != 0).any() for parameter in trains(model).values())
    after = model(**batch, thoughts=thoughts)
    assert torch.equal(after.base_nll, before.base_nll)
    assert (after.talk_nll - before.talk_nll).abs().max() > 0.01


def test_gradients_of_branch_adapters_do_not_depend_on_checkpointing() -> None:
    batch = texts(8, 5)
    found = []
    for checkpointing in (False, True):
        model = with_branch_adapters(n_passes=2, policy_weight=1.0, lora=dict(LORA)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch, thoughts=random_thoughts(model, 2, 8, P=2), loss_only=True).loss.backward()
        found.append({name: parameter.grad for name, parameter in trains(model).items()})
    assert any(".branch" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_branch_adapters_leave_the_base_model_training() -> None:
    model = with_branch_adapters()
    assert set(trains(model)) == {name for name, _ in model.named_parameters()}
    beside = with_branch_adapters(lora=dict(LORA))
    assert {".branch" in name for name in trains(beside) if ".lora_" in name} == {True, False}
    assert not any(".lora_" not in name and name.startswith("base_lm") for name in trains(beside))


@pytest.mark.parametrize("lora", [None, dict(LORA)], ids=["alone", "beside lora"])
def test_a_saved_model_with_branch_adapters_comes_back(lora: dict | None, tmp_path: Path) -> None:
    model = with_branch_adapters(lora=lora)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), expected)
    assert set(trains(loaded)) == set(trains(model))


def test_merging_leaves_adapters_of_branches(tmp_path: Path) -> None:
    model = with_branch_adapters(lora=dict(LORA))
    expected = logits(model)
    model.merge_lora()
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
    assert model.config.lora is None
    assert {".branch" in name for name in model.state_dict() if ".lora_" in name} == {True}
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(QuietStarForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_branches_share_embeddings_and_head_with_the_text(module: str) -> None:
    with pytest.raises(SettingsError, match=f"{module}, which text and branches share"):
        QuietStarForCausalLM.from_base(tiny_base(), branch_adapters={"r": 2, "target_modules": ["q_proj", module]})
