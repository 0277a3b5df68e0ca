"""Commands and the server choose tokens by their options alone, and ignore the model's generation_config."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import GenerationConfig

from quietstar import QuietStarForCausalLM
from quietstar.evaluation.tasks import Item, find_task
from quietstar.evaluation.voting import VotingSettings, vote
from quietstar.inference.loading import load_model
from quietstar.inference.speak import GenerateArguments, continue_one
from quietstar.inference.text_settings import say_what_is_set_aside, set_aside, text_settings
from quietstar.inspection.settings import TraceSettings
from quietstar.inspection.texts import written
from tests.serving.running import a_job, driven
from tests.tiny import tiny_base, tiny_model
from tests.tiny_tokenizer import byte_tokenizer, thinking_folders

ASKED: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "no word twice": {"no_repeat_ngram_size": 1},
    "beams": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "several texts": {"do_sample": True, "num_return_sequences": 2},
    "lengths": {"min_new_tokens": 30, "max_length": 3, "exponential_decay_length_penalty": (1, 2.0)},
    "sampling": {"do_sample": True, "temperature": 3.0, "top_k": 3, "top_p": 0.5, "min_p": 0.2, "typical_p": 0.3},
    "other returns": {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
    "words": {"bad_words_ids": [[101]], "sequence_bias": [[[102], 50.0]], "forced_eos_token_id": 1},
    "guidance": {"guidance_scale": 1.7, "renormalize_logits": True},
}
PROMPT = "one two one two"
N = 12


def model_that_asks(asked: dict[str, Any], **tokens: Any) -> QuietStarForCausalLM:
    model = tiny_model("llama", n_ahead=4, base={"vocab_size": 259})
    model.generation_config = GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 0, **tokens, **asked})
    return model


def by_command(model: Any, temperature: float) -> str:
    out = io.StringIO()
    args = GenerateArguments(max_new_tokens=N, temperature=temperature)
    ids = torch.tensor([byte_tokenizer()(PROMPT)["input_ids"]])
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    continue_one(model, tokenizer, ids, args, Console(file=out, soft_wrap=True))
    return out.getvalue()


def by_server(model: QuietStarForCausalLM, temperature: float) -> list[int]:
    engine = driven(model)
    _, events = engine.ask(a_job(byte_tokenizer()(PROMPT)["input_ids"], max_tokens=N, temperature=temperature))
    engine.finish()
    return [event.token for event in events]


def by_inspection(model: QuietStarForCausalLM, temperature: float) -> list[int]:
    torch.manual_seed(0)
    found = written(model, byte_tokenizer(), PROMPT, N, TraceSettings(interventions=()), temperature=temperature)
    return found.ids


def by_vote(model: Any, temperature: float) -> list[str]:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    settings = VotingSettings(n_votes=2, temperature=temperature, max_new_tokens=N, answer_tokens=3)
    item = Item(0, "What is 2 + 2?", " 4")
    found = vote(model, tokenizer, find_task("gsm8k"), item, settings, seed=0)
    return found["texts"]


COMMANDS = {"generate": by_command, "serve": by_server, "inspect": by_inspection, "evaluate": by_vote}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("asks_for", ASKED)
def test_what_a_model_asks_for_is_set_aside(asks_for: str, command: str) -> None:
    """By all commands."""
    write = COMMANDS[command]
    assert write(model_that_asks(ASKED[asks_for]), 0.8) == write(model_that_asks({}), 0.8)


def test_temperature_0_takes_the_likeliest_token() -> None:
    """As documented by `--help`, also for a plain model; the server writes the same."""
    model = model_that_asks(ASKED["penalties"] | ASKED["sampling"])
    ids = byte_tokenizer()(PROMPT)["input_ids"]
    found = by_inspection(model, 0.0)
    assert found[len(ids) :] == by_server(model, 0.0)
    for n in range(len(ids), len(found)):
        with torch.no_grad():
            assert found[n] == int(model(torch.tensor([found[:n]])).logits[0, -1].argmax())
    base_lm = model.base_lm
    base_lm.generation_config = model.generation_config
    with torch.no_grad():
        likeliest = int(base_lm(torch.tensor([ids])).logits[0, -1].argmax())
    assert by_command(base_lm, 0.0).startswith(byte_tokenizer().decode([likeliest]))


def test_generate_in_python_obeys_the_model() -> None:
    """Like any Hugging Face model."""
    ids = torch.tensor([byte_tokenizer()(PROMPT)["input_ids"]])
    free, bound = (model_that_asks(asked).generate(ids, max_new_tokens=N) for asked in ({}, ASKED["penalties"]))
    assert not torch.equal(free, bound)


@pytest.mark.parametrize("command", ["generate", "serve", "inspect"])
def test_tokens_that_end_a_text_or_never_enter_it_are_kept(command: str) -> None:
    """Those of the generation_config, and the tokenizer's eos."""
    free = by_server(model_that_asks({}, eos_token_id=None), 0.0)
    n_prompt = len(byte_tokenizer()(PROMPT)["input_ids"])
    end, never = free[3], free[0]

    def tokens(model: QuietStarForCausalLM) -> Any:
        found = COMMANDS[command](model, 0.0)
        return found[n_prompt:] if command == "inspect" else found

    ended = tokens(model_that_asks({}, eos_token_id=[2, end]))
    other = tokens(model_that_asks({}, suppress_tokens=[never]))
    if command == "generate":
        assert ended == byte_tokenizer().decode(free[: free.index(end) + 1])
        assert not other.startswith(byte_tokenizer().decode([never]))
    else:
        assert ended == free[: free.index(end) + 1]
        assert never not in other


def test_one_line_says_what_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        say_what_is_set_aside(model_that_asks({"temperature": 0.6, "do_sample": True, "repetition_penalty": 1.0}))
        assert not caplog.records
        say_what_is_set_aside(model_that_asks(ASKED["penalties"]))
    (record,) = caplog.records
    assert "repetition_penalty=1.5, no_repeat_ngram_size=2" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_models_without_such_settings_have_none_to_set_aside(tmp_path: Path) -> None:
    """Including those of a new base model, saved and loaded."""
    assert set_aside(tiny_base("gpt2")) == {}
    model, tokenizer = load_model(thinking_folders(tmp_path, n_ahead=4) / "thinking", GenerateArguments())
    assert set_aside(model) == {}
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "min_p": None}
    tokens = {"eos_token_id": [2], "pad_token_id": 2, "suppress_tokens": None}
    assert text_settings(model, tokenizer, 0.0) == greedy | tokens
