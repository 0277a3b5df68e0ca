"""Checkpoints of the released code, in and out: nothing is lost on the way, nothing is overwritten."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError, QuietStarError, SettingsError, UnsupportedModelError
from quietstar.interop.convert import convert
from quietstar.interop.original import THOUGHT_TOKENS
from tests.tiny import FAMILIES, tiny_base, tiny_model
from tests.tiny_tokenizer import byte_tokenizer, tiny_folder

WORDS = len(byte_tokenizer())
D = 32


def original_folder(folder: Path, *, with_tokenizer: bool = True) -> Path:
    """A checkpoint as the released code writes it: its names, its config fields, two more vocabulary rows."""
    base_lm = tiny_base("mistral", vocab_size=WORDS + 2)
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    state = {name: tensor.clone() for name, tensor in base_lm.state_dict().items()}
    for layer, (out, n) in {0: (D, 2 * D), 2: (D, D)}.items():
        state[f"talk_head.0.{layer}.weight"] = 1.5 * drawn(out, n)
        state[f"talk_head.0.{layer}.bias"] = drawn(out)
    state["talk_head.0.4.weight"] = 1.5 * drawn(1, D)
    state["start_embedding"], state["end_embedding"] = drawn(2, D) / 50, drawn(2, D) / 50
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {name: value for name, value in FAMILIES["mistral"].items() if value is not None}
    extra = {"max_thoughts": 9, "use_concat_talk_head": True, "merged_talk_heads": True, "use_shallow_think": True}
    config = sizes | extra | {"vocab_size": WORDS + 2, "model_type": "mistral", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MistralForCausalLM"]}))
    if with_tokenizer:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(list(THOUGHT_TOKENS), special_tokens=True)
        tokenizer.save_pretrained(folder)
    return folder


def our_folder(folder: Path, family: str = "mistral", n_words: int = WORDS, **settings: object) -> Path:
    """A thinking model of ours with its tokenizer."""
    model = tiny_model(family, **({"base": dict(vocab_size=n_words), "n_ahead": 5} | settings))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def logits_of(model: torch.nn.Module) -> Tensor:
    """Mixed logits, each thought the greedy one."""
    input_ids = torch.randint(3, WORDS, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids).logits


def thoughts_of(model: torch.nn.Module) -> Tensor:
    input_ids = torch.randint(3, WORDS, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids).thoughts


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_from_the_released_code(tmp_path):
    source = original_folder(tmp_path / "theirs")
    assert convert(str(source), tmp_path / "ours", n_ahead=5, n_ahead_talk=2) == "quietstar"
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert isinstance(ours, QuietStarForCausalLM)
    assert (ours.config.n_ahead, ours.config.n_ahead_talk) == (5, 2)
    assert ours.config.suppressed_token_ids == [WORDS, WORDS + 1]
    state = load_file(source / "model.safetensors")
    torch.testing.assert_close(ours.thought_embeddings.start, 100 * state["start_embedding"][0])
    torch.testing.assert_close(ours.thought_embeddings.end, 100 * state["end_embedding"][0])
    assert torch.equal(ours.mixing_head.layers[2].weight, state["talk_head.0.2.weight"])
    direct = QuietStarForCausalLM.from_original(source, n_ahead=5)
    assert torch.equal(logits_of(ours), logits_of(direct))
    assert (logits_of(ours) - ours.base_lm(torch.arange(5, 17)[None]).logits).abs().max() > 0.1
    assert not (thoughts_of(ours) >= WORDS).any()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.convert_tokens_to_ids(list(THOUGHT_TOKENS)) == [WORDS, WORDS + 1]


def test_n_ahead_defaults_to_eight(tmp_path):
    convert(str(original_folder(tmp_path / "theirs")), tmp_path / "ours")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.n_ahead == 8


def test_without_a_tokenizer_the_last_two_rows_are_those_of_the_thought(tmp_path):
    source = original_folder(tmp_path / "theirs", with_tokenizer=False)
    convert(str(source), tmp_path / "ours", n_ahead=4)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.suppressed_token_ids == [WORDS, WORDS + 1]
    assert not (tmp_path / "ours" / "tokenizer.json").exists()


def test_there_and_back_again_from_the_released_code(tmp_path):
    source = original_folder(tmp_path / "theirs")
    convert(str(source), tmp_path / "ours", n_ahead=5)
    assert convert(str(tmp_path / "ours"), tmp_path / "again") == "original"
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.endswith("_embedding"):  # its second row is unused
            tensor, after[name] = tensor[0], after[name][0]
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=0)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "again")]
    for name in ("vocab_size", "hidden_size", "num_key_value_heads", "model_type", "use_concat_talk_head"):
        assert configs[0][name] == configs[1][name], name
    words = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (source, tmp_path / "again")]
    assert words[0] == words[1]


@pytest.mark.parametrize("embedding_scale", [100.0, 7.0])
def test_there_and_back_again_from_ours(tmp_path, embedding_scale):
    source = our_folder(tmp_path / "ours", embedding_scale=embedding_scale)
    assert convert(str(source), tmp_path / "theirs") == "original"
    assert convert(str(tmp_path / "theirs"), tmp_path / "again", n_ahead=5) == "quietstar"
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (source, tmp_path / "again"))
    assert (after.config.vocab_size, after.config.suppressed_token_ids) == (WORDS + 2, [WORDS, WORDS + 1])
    assert torch.equal(thoughts_of(after), thoughts_of(before))
    torch.testing.assert_close(logits_of(after)[..., :WORDS], logits_of(before), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.thought_embeddings.start, before.thought_embeddings.start)


def test_the_released_codes_tokenizer_has_the_two_tokens_at_their_rows(tmp_path):
    convert(str(our_folder(tmp_path / "ours")), tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert tokenizer.convert_tokens_to_ids(list(THOUGHT_TOKENS)) == [WORDS, WORDS + 1]
    assert set(THOUGHT_TOKENS) <= set(tokenizer.all_special_tokens)
    assert tokenizer("".join(THOUGHT_TOKENS))["input_ids"] == [WORDS, WORDS + 1]
    assert tokenizer("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(state["model.embed_tokens.weight"][WORDS], ours.thought_embeddings.start)
    torch.testing.assert_close(state["model.embed_tokens.weight"][WORDS + 1], ours.thought_embeddings.end)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["vocab_size"] == WORDS + 2
    assert len(state["lm_head.weight"]) == WORDS + 2


def test_tokens_and_rows_meet_where_the_embeddings_are_padded(tmp_path):
    """Many models have more embeddings than words."""
    padded = WORDS + 5
    convert(str(our_folder(tmp_path / "ours", n_words=padded)), tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    start, end = tokenizer.convert_tokens_to_ids(list(THOUGHT_TOKENS))
    torch.testing.assert_close(state["model.embed_tokens.weight"][start], ours.thought_embeddings.start)
    torch.testing.assert_close(state["model.embed_tokens.weight"][end], ours.thought_embeddings.end)


@pytest.mark.parametrize("n_further", [0, 5])
def test_tables_that_were_one_are_two_and_the_config_says_so(tmp_path, n_further):
    """The released code's rows stand in the embeddings, and zeros in their place in the LM head."""
    source = our_folder(tmp_path / "ours", base=dict(vocab_size=WORDS + n_further, tie_word_embeddings=True))
    convert(str(source), tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["tie_word_embeddings"] is False
    assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    convert(str(tmp_path / "theirs"), tmp_path / "again", n_ahead=5)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (source, tmp_path / "again"))
    torch.testing.assert_close(logits_of(after)[..., :WORDS], logits_of(before)[..., :WORDS], rtol=1e-5, atol=1e-5)


def test_tables_that_are_one_are_stored_once(tmp_path):
    """Of a model that has the released code's rows already."""
    model = tiny_model("mistral", base=dict(vocab_size=WORDS, tie_word_embeddings=True), n_ahead=5)
    model.config.base_config.max_thoughts = 9
    model.save_original(tmp_path / "theirs")
    assert "lm_head.weight" not in load_file(tmp_path / "theirs" / "model.safetensors")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["tie_word_embeddings"] is True
    again = QuietStarForCausalLM.from_original(tmp_path / "theirs", n_ahead=5, suppressed_token_ids=[])
    torch.testing.assert_close(logits_of(again), logits_of(model), rtol=1e-5, atol=1e-5)


def test_a_gguf_file_is_for_export(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"is a plain model in a GGUF file; use quietstar export .*--to plain"):
        convert(str(tmp_path / "tiny.gguf"), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_special_tokens_that_were_there_stay_special(tmp_path):
    source = our_folder(tmp_path / "ours", n_words=WORDS + 1)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(source)
    assert "<tool>" in AutoTokenizer.from_pretrained(source).all_special_tokens
    convert(str(source), tmp_path / "theirs")
    after = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert {"<tool>", *THOUGHT_TOKENS} <= set(after.all_special_tokens)


def test_adapters_are_merged_on_the_way_out(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    base = tiny_folder(tmp_path / "base")
    model = QuietStarForCausalLM.from_base(str(base), n_ahead=4, lora={"r": 4, "lora_alpha": 8})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        model.mixing_head.layers[-1].weight.fill_(0.3)
    model.save_pretrained(tmp_path / "ours")
    byte_tokenizer().save_pretrained(tmp_path / "ours")
    convert(str(tmp_path / "ours"), tmp_path / "theirs")
    assert not any("lora" in name for name in load_file(tmp_path / "theirs" / "model.safetensors"))
    again = QuietStarForCausalLM.from_original(tmp_path / "theirs", n_ahead=4)
    torch.testing.assert_close(logits_of(again)[..., :WORDS], logits_of(model), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["theirs", "ours"])
@pytest.mark.parametrize("held", ["a file in it", "a file"])
def test_a_target_that_holds_something_is_left_alone(tmp_path, kind, held):
    source = original_folder(tmp_path / "source") if kind == "theirs" else our_folder(tmp_path / "source")
    target = tmp_path / "target"
    if held == "a file":
        target.write_text("years of work")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match="is not empty; give a new or empty folder"):
        convert(str(source), target)
    assert files_of(tmp_path) == before
    with pytest.raises(CheckpointError, match="is not empty"):
        convert(str(source), source)
    assert files_of(tmp_path) == before


def test_an_empty_target_will_do(tmp_path):
    (tmp_path / "target").mkdir()
    convert(str(original_folder(tmp_path / "theirs")), tmp_path / "target", n_ahead=4)
    assert (tmp_path / "target" / "model.safetensors").is_file()


def test_settings_of_a_model_that_has_its_own(tmp_path):
    source = our_folder(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="has its own settings; leave n_ahead, n_ahead_talk out"):
        convert(str(source), tmp_path / "theirs", n_ahead=4, n_ahead_talk=2)
    assert not (tmp_path / "theirs").exists()


def test_impossible_settings(tmp_path):
    with pytest.raises(SettingsError, match="n_ahead is 1"):
        convert(str(original_folder(tmp_path / "theirs")), tmp_path / "ours", n_ahead=1)
    assert not (tmp_path / "ours").exists()


def test_only_a_mistral_fits_the_released_code(tmp_path):
    source = our_folder(tmp_path / "ours", "llama")
    with pytest.raises(UnsupportedModelError, match="patched Mistral and cannot hold a llama"):
        convert(str(source), tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_a_plain_model_is_neither(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint of the released code; from_base gives thoughts"):
        convert(str(tiny_folder(tmp_path / "base")), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_other_heads_than_the_papers_are_named(tmp_path):
    source = original_folder(tmp_path / "theirs")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"use_concat_talk_head": False}))
    with pytest.raises(CheckpointError, match="use_concat_talk_head"):
        convert(str(source), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no/such"):
        convert("no/such", tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        convert(str(tmp_path / "empty"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("theirs", "gone"),
        pytest.param("theirs", "torn"),
        pytest.param("ours", "gone"),
        pytest.param("ours", "torn"),
    ],
)
def test_weights_that_are_gone_or_torn_are_said_as_errors_of_ours(tmp_path, kind, state):
    source = original_folder(tmp_path / "source") if kind == "theirs" else our_folder(tmp_path / "source")
    weights = source / "model.safetensors"
    if state == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(QuietStarError, match="source"):
        convert(str(source), tmp_path / "target")
    assert not (tmp_path / "target").exists()
