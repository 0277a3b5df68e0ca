"""Checkpoints of the released code: in, out, and in again; every way of writing them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError, UnsupportedModelError
from quietstar.interop.original import LAYOUT
from tests.tiny import VOCABULARY, texts, tiny_base, tiny_model

SHORT = {"max_new_tokens": 8, "eos_token_id": None}


def thinking(family: str = "mistral", **settings: object) -> QuietStarForCausalLM:
    return tiny_model(family, **{"n_ahead": 4, **settings})


def saved(folder: Path, **settings: object) -> Path:
    """A checkpoint in the released code's layout."""
    thinking(**settings).save_original(folder)
    return folder


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def state_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def run(model: QuietStarForCausalLM) -> tuple[Tensor, Tensor]:
    """Logits of the 61 ordinary tokens and greedy thoughts, at real positions of padded rows."""
    inputs = texts(8, 4, left=True)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        output = model(inputs["input_ids"], inputs["attention_mask"])
    return output.logits[real][:, :VOCABULARY], output.thoughts[:, 0][real]


def assert_same(ours: QuietStarForCausalLM, theirs: QuietStarForCausalLM) -> None:
    for own, other in zip(run(ours), run(theirs), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("family", ["mistral", "mistral-window"])
def test_there_and_back_is_the_same_function(family: str, tmp_path: Path) -> None:
    model = thinking(family)
    model.save_original(tmp_path / "first")
    loaded = QuietStarForCausalLM.from_original(tmp_path / "first", n_ahead=4)
    assert_same(loaded, model)
    assert not loaded.training
    assert loaded.config.vocab_size == VOCABULARY + 2
    assert loaded.config.suppressed_token_ids == [VOCABULARY, VOCABULARY + 1]
    assert loaded.config.base_config.sliding_window == model.config.base_config.sliding_window
    ours, theirs = model.base_lm.state_dict(), loaded.base_lm.state_dict()
    for name, tensor in ours.items():
        assert torch.equal(theirs[name][: len(tensor)], tensor), name

    loaded.save_original(tmp_path / "second")  # it has its two rows already
    assert state_of(tmp_path / "first").keys() == state_of(tmp_path / "second").keys()
    for name, tensor in state_of(tmp_path / "first").items():
        assert torch.equal(state_of(tmp_path / "second")[name], tensor), name


@pytest.mark.parametrize("scale", [100.0, 10.0])
def test_thought_embeddings_survive_at_any_scale(scale: float, tmp_path: Path) -> None:
    """Their files hold a hundredth of what is fed, in row 0 of two."""
    model = thinking(embedding_scale=scale)
    model.save_original(tmp_path)
    for side in ("start", "end"):
        fed = getattr(model.thought_embeddings, side).detach()
        stored = state_of(tmp_path)[f"{side}_embedding"]
        torch.testing.assert_close(stored, torch.stack([fed / 100, torch.zeros(32)]))
        for own_scale in (100.0, 25.0):
            loaded = QuietStarForCausalLM.from_original(tmp_path, n_ahead=4, embedding_scale=own_scale)
            torch.testing.assert_close(getattr(loaded.thought_embeddings, side).detach(), fed)
            run(loaded)
            torch.testing.assert_close(getattr(loaded.thought_embeddings, side).detach(), fed)


def test_what_is_written_is_what_the_released_code_reads(tmp_path: Path) -> None:
    state = state_of(saved(tmp_path))
    base = {name for name in state if name.startswith(("model.", "lm_head."))}
    head = {f"talk_head.0.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight")}
    assert state.keys() - base == head | {"start_embedding", "end_embedding"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in LAYOUT} == LAYOUT
    assert config["model_type"] == "mistral"
    assert config["vocab_size"] == len(state["model.embed_tokens.weight"]) == len(state["lm_head.weight"])
    assert config["rope_theta"] == 10000.0
    assert config["torch_dtype"] == "float32"
    # its own rows of start and end are embedded as ours are fed
    fed = 100 * torch.stack([state["start_embedding"][0], state["end_embedding"][0]])
    torch.testing.assert_close(state["model.embed_tokens.weight"][-2:], fed)


def test_a_tied_table_gets_its_rows_too(tmp_path: Path) -> None:
    model = thinking(base={"tie_word_embeddings": True})
    model.save_original(tmp_path)
    assert_same(QuietStarForCausalLM.from_original(tmp_path, n_ahead=4), model)


def test_bfloat16_is_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    half = QuietStarForCausalLM.from_original(folder, n_ahead=4, dtype=torch.bfloat16)
    assert {p.dtype for p in half.base_lm.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.mixing_head.parameters()} == {torch.float32}
    half.save_original(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in state_of(tmp_path / "half").values()} == {torch.bfloat16}
    again = QuietStarForCausalLM.from_original(tmp_path / "half", n_ahead=4)
    assert {p.dtype for p in again.base_lm.parameters()} == {torch.bfloat16}


# ---------------------------------------------------------------------- the two rows


def test_the_two_rows_are_never_sampled(tmp_path: Path) -> None:
    """However likely the checkpoint makes them."""
    state = state_of(saved(tmp_path))
    loud_row = 100 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    state["lm_head.weight"][-2:] = torch.stack([loud_row, -loud_row])
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = QuietStarForCausalLM.from_original(tmp_path, n_ahead=6)
    inputs = texts(8, 4, left=True)
    del inputs["labels"]
    with torch.no_grad():
        output = model(**inputs, n_passes=4, thought_temperature=1.0)
        # one of the two is the likeliest token everywhere
        assert (output.logits.argmax(-1)[inputs["attention_mask"].bool()] >= VOCABULARY).float().mean() > 0.5
    assert (output.thoughts < VOCABULARY).all()
    for how in ({"do_sample": False}, {"do_sample": True, "temperature": 10.0}):
        rows = model.generate(**inputs, **how, **SHORT)
        assert (rows < VOCABULARY).all()


def test_other_tokens_may_be_suppressed_instead(tmp_path: Path) -> None:
    model = QuietStarForCausalLM.from_original(saved(tmp_path), n_ahead=4, suppressed_token_ids=[5])
    assert model.config.suppressed_token_ids == [5]


def test_a_model_that_suppresses_words_keeps_its_last_two(tmp_path: Path) -> None:
    """Rows are missing wherever the last two are not start and end, whatever else is suppressed."""
    model = thinking(suppressed_token_ids=[5])
    model.save_original(tmp_path)
    loaded = QuietStarForCausalLM.from_original(tmp_path, n_ahead=4)
    assert loaded.config.vocab_size == VOCABULARY + 2
    assert not {VOCABULARY - 2, VOCABULARY - 1} & set(loaded.config.suppressed_token_ids)


# ---------------------------------------------------------------------- ways of writing the files


def as_bin(folder: Path) -> None:
    torch.save(state_of(folder), folder / "pytorch_model.bin")


def as_shards(folder: Path, suffix: str, index: str, write: Callable[[dict, Path], None]) -> None:
    """Three files, the mixing head spread over two of them."""
    state = state_of(folder)
    names = sorted(state)
    parts = [names[0::3], names[1::3], names[2::3]]
    weight_map = {}
    for n, part in enumerate(parts):
        file = f"model-{n + 1:05}-of-00003{suffix}"
        write({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def as_safetensors_shards(folder: Path) -> None:
    def write(state: dict, file: Path) -> None:
        save_file(state, file, metadata={"format": "pt"})

    as_shards(folder, ".safetensors", "model.safetensors.index.json", write)


def as_bin_shards(folder: Path) -> None:
    as_shards(folder, ".bin", "pytorch_model.bin.index.json", torch.save)


@pytest.mark.parametrize("rewrite", [as_bin, as_safetensors_shards, as_bin_shards])
def test_every_way_of_writing_the_files(rewrite: Callable[[Path], None], tmp_path: Path) -> None:
    expected = QuietStarForCausalLM.from_original(saved(tmp_path), n_ahead=4)
    rewrite(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    loaded = QuietStarForCausalLM.from_original(tmp_path, n_ahead=4)
    ours, theirs = loaded.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for own, other in zip(run(loaded), run(expected), strict=True):
        assert torch.equal(own, other)


class Surprise:
    """A pickle that does something when it is opened."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))


def test_a_pickle_with_anything_but_tensors_is_not_opened(tmp_path: Path) -> None:
    folder, witness = saved(tmp_path / "checkpoint"), tmp_path / "witness"
    torch.save({**state_of(folder), "talk_head.0.9": Surprise(witness)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Exception, match="more than tensors, was not opened"):
        QuietStarForCausalLM.from_original(folder, n_ahead=4)
    assert not witness.exists()


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("lost", ["talk_head.0.0.weight", "talk_head.0.4.weight", "start_embedding", "end_embedding"])
def test_missing_heads_are_refused(lost: str, tmp_path: Path) -> None:
    state = state_of(saved(tmp_path))
    del state[lost]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"has no {lost}"):
        QuietStarForCausalLM.from_original(tmp_path, n_ahead=4)


def test_a_plain_model_is_no_original(tmp_path: Path) -> None:
    tiny_base("mistral").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="from_base"):
        QuietStarForCausalLM.from_original(tmp_path)


def test_heads_of_another_shape_are_refused(tmp_path: Path) -> None:
    state = state_of(saved(tmp_path))
    state["talk_head.0.0.weight"] = state["talk_head.0.0.weight"][:, :32].contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"talk_head.0.0.weight \[32, 32\]; only .* \[32, 64\]"):
        QuietStarForCausalLM.from_original(tmp_path)


@pytest.mark.parametrize("flag", LAYOUT)
def test_other_layouts_are_refused(flag: str, tmp_path: Path) -> None:
    change_config(saved(tmp_path), **{flag: not LAYOUT[flag]})
    with pytest.raises(CheckpointError, match=flag):
        QuietStarForCausalLM.from_original(tmp_path)


def test_a_config_of_another_family_is_refused(tmp_path: Path) -> None:
    change_config(saved(tmp_path), model_type="llama")
    with pytest.raises((CheckpointError, UnsupportedModelError), match="llama"):
        QuietStarForCausalLM.from_original(tmp_path)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_refused(lost: str, tmp_path: Path) -> None:
    (saved(tmp_path) / lost).unlink()
    with pytest.raises(CheckpointError):
        QuietStarForCausalLM.from_original(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        QuietStarForCausalLM.from_original(tmp_path / "nowhere")


def test_only_mistral_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="llama"):
        thinking("llama").save_original(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_released_code_needs_a_mixing_head(tmp_path: Path) -> None:
    model = QuietStarForCausalLM.from_base(tiny_base("mistral"), n_ahead=4, mixing="thought")
    with pytest.raises(UnsupportedModelError, match=r"always has a mixing head \(mixing is thought\)"):
        model.save_original(tmp_path)


def test_the_released_codes_thoughts_do_not_end_early(tmp_path: Path) -> None:
    model = QuietStarForCausalLM.from_base(tiny_base("mistral"), n_ahead=4, learn_to_end=True)
    with pytest.raises(UnsupportedModelError, match="do not end early"):
        model.save_original(tmp_path)


def test_adapters_are_merged_first(tmp_path: Path) -> None:
    model = QuietStarForCausalLM.from_base(tiny_base("mistral"), n_ahead=4, lora={"r": 2})
    with pytest.raises(UnsupportedModelError, match="merge_lora"):
        model.save_original(tmp_path)
    model.merge_lora()
    model.save_original(tmp_path)
    assert_same(QuietStarForCausalLM.from_original(tmp_path, n_ahead=4), model)


@pytest.mark.parametrize("what", ["a folder with something in it", "a file"])
def test_nothing_is_overwritten(what: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if what == "a file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="is not empty"):
        thinking().save_original(target)
    left = target if what == "a file" else target / "notes.txt"
    assert left.read_text() == "precious"
