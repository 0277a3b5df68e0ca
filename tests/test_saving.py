"""What is saved comes back, bit for bit: padded rows, tied tables, experts, dtypes, trained thought embeddings."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from quietstar import QuietStarForCausalLM
from quietstar.attention.hook import own_implementation
from quietstar.errors import CheckpointError
from tests.tiny import make_thoughtful, texts, tiny_base, tiny_model

KINDS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "mistral-window": ("mistral-window", {}),
    "qwen2-window": ("qwen2-window", {}),
    "gpt_neox": ("gpt_neox", {}),
    "mixtral": ("mixtral", {}),
}
LOADERS = {
    "QuietStarForCausalLM": QuietStarForCausalLM.from_pretrained,
    "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained,
}


def prompts() -> dict[str, Tensor]:
    """Rows of unequal length: an inner attention that lost its implementation would see the padding."""
    return {name: value for name, value in texts(9, 4, left=True).items() if name != "labels"}


def logits(model: QuietStarForCausalLM) -> Tensor:
    inputs = prompts()
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back(kind: str, tmp_path: Path) -> None:
    family, base = KINDS[kind]
    model = tiny_model(family, base=base, n_ahead=4)
    model.save_pretrained(tmp_path)
    expected = logits(model)
    for name, load in LOADERS.items():
        loaded = load(tmp_path)
        assert isinstance(loaded, QuietStarForCausalLM), name
        assert not loaded.training
        assert loaded.base_lm.config._attn_implementation == model.base_lm.config._attn_implementation
        assert torch.equal(logits(loaded), expected), name
        ours, theirs = model.state_dict(), loaded.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(QuietStarForCausalLM.from_pretrained(tmp_path / "again")), expected)


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "gemma2"])
def test_tied_tables_stay_one(kind: str, tmp_path: Path) -> None:
    family, base = KINDS[kind]
    tiny_model(family, base=base).save_pretrained(tmp_path)
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    saved = load_file(tmp_path / "model.safetensors")
    shape = loaded.get_input_embeddings().weight.shape
    assert [tuple(tensor.shape) for tensor in saved.values()].count(tuple(shape)) == 1


def test_shards_come_back(tmp_path: Path) -> None:
    model = tiny_model(n_ahead=4)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits(QuietStarForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_what_was_trained_survives(tmp_path: Path) -> None:
    """The released code overwrites its thought embeddings in the first forward after loading."""
    model = tiny_model(n_ahead=4, n_passes=2).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(**texts(8, 5)).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    expected = logits(model)
    assert torch.equal(logits(loaded), expected)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))
        assert not torch.equal(parameter, before[name]), name
    assert torch.equal(logits(loaded), expected), "nor does a forward change them"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "mixtral"])
def test_loading_in_bfloat16_keeps_the_small_things_in_float32(kind: str, tmp_path: Path) -> None:
    family, base = KINDS[kind]
    model = tiny_model(family, base=base, n_ahead=4)
    model.save_pretrained(tmp_path)
    for load in LOADERS.values():
        loaded = load(tmp_path, dtype=torch.bfloat16)
        assert {p.dtype for p in loaded.base_lm.parameters()} == {torch.bfloat16}
        for own, part in ((model.mixing_head, "mixing_head"), (model.thought_embeddings, "thought_embeddings")):
            for name, parameter in getattr(loaded, part).named_parameters():
                assert parameter.dtype == torch.float32
                assert torch.equal(parameter, own.get_parameter(name)), "not rounded on the way"
    loaded.save_pretrained(tmp_path / "half")
    again = QuietStarForCausalLM.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in again.base_lm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in again.mixing_head.parameters()} == {torch.float32}
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "gpt2"])
def test_the_attention_that_was_asked_for_is_used(family: str, implementation: str, tmp_path: Path) -> None:
    model = tiny_model(family, n_ahead=4)
    model.save_pretrained(tmp_path)
    expected = logits(model)
    tolerance = 1e-4 * float(expected.abs().max())
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation)
    assert own_implementation(loaded.base_lm) == implementation
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=tolerance)

    base_lm = tiny_base(family)
    base_lm.set_attn_implementation(implementation)
    fresh = QuietStarForCausalLM.from_base(base_lm, n_ahead=4)
    assert own_implementation(fresh.base_lm) == implementation
    make_thoughtful(fresh)
    fresh.mixing_head.load_state_dict(model.mixing_head.state_dict())
    torch.testing.assert_close(logits(fresh), expected, rtol=0, atol=tolerance)


def test_generation_settings_come_back(tmp_path: Path) -> None:
    base_lm = tiny_base()
    base_lm.generation_config.repetition_penalty = 1.5
    model = QuietStarForCausalLM.from_base(base_lm, n_ahead=4)
    assert model.generation_config.repetition_penalty == 1.5
    model.save_pretrained(tmp_path)
    loaded = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.repetition_penalty == 1.5
    how = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
    assert torch.equal(loaded.generate(**prompts(), **how), model.generate(**prompts(), **how))


@pytest.mark.parametrize("lost", ["mixing_head.layers.2.weight", "thought_embeddings.end_embedding", "q_proj"])
def test_missing_weights_are_no_model(lost: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({name: tensor for name, tensor in state.items() if lost not in name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks .* of the model's weights.*{lost}") as refusal:
        QuietStarForCausalLM.from_pretrained(tmp_path)
    assert "\n" not in str(refusal.value)


def test_loading_tells_what_it_found(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    model, info = QuietStarForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, QuietStarForCausalLM)
    assert not info["missing_keys"]


def test_a_folder_of_a_base_model_makes_a_thinking_one(tmp_path: Path) -> None:
    base_lm = tiny_base("mistral-window")
    base_lm.save_pretrained(tmp_path)
    from_folder = QuietStarForCausalLM.from_base(tmp_path, n_ahead=4)
    from_model = QuietStarForCausalLM.from_base(base_lm, n_ahead=4)
    assert torch.equal(logits(from_folder), logits(from_model))
    half = QuietStarForCausalLM.from_base(str(tmp_path), n_ahead=4, dtype=torch.bfloat16, attn_implementation="eager")
    assert {p.dtype for p in half.base_lm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.mixing_head.parameters()} == {torch.float32}
    assert own_implementation(half.base_lm) == "eager"


def test_early_ends_are_chosen_when_a_model_is_given_thoughts(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"saved by a model without learn_to_end, .*; leave learn_to_end out"):
        QuietStarForCausalLM.from_pretrained(tmp_path, learn_to_end=True)
