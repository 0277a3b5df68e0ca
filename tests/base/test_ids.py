"""Ids beyond the tokenizer, which pad the vocabulary, are never sampled; predictions do not change."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from quietstar import QuietStarForCausalLM
from quietstar.base.ids import n_tokens, padding_ids, set_token_ids
from quietstar.errors import SettingsError
from quietstar.inference.loading import UseArguments, load_model
from quietstar.inference.text_settings import suppressed_ids, text_settings
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.model import thinking_model
from tests.serving.running import a_job, driven
from tests.tiny import make_thoughtful, seeded, tiny_base
from tests.tiny_tokenizer import byte_tokenizer, tiny_folder

TOKENS, ROWS = 259, 320
IDS = torch.tensor([[5, 9, 77, 200, 4]])


def thinker(rows: int = ROWS, tokenizer: PreTrainedTokenizerBase | None = None, **how: object) -> QuietStarForCausalLM:
    """With a head that likes the rows beyond the tokenizer best."""
    base_lm = tiny_base(vocab_size=rows)
    with torch.no_grad():
        base_lm.get_output_embeddings().weight[TOKENS:] *= 3
    settings = {"n_ahead": 5, "n_ahead_talk": 2, "n_passes": 2, **how}
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer or byte_tokenizer(), **settings)
    make_thoughtful(model)
    return model.eval()


def test_a_fresh_model_knows_its_tokenizer() -> None:
    """A list of ids is not needed, however many there are; without padding nothing is set."""
    model = thinker()
    assert model.config.n_tokens == TOKENS
    assert not model.config.suppressed_token_ids
    assert model.config.suppressed == model.suppressed.tolist() == list(range(TOKENS, ROWS))
    whole = thinker(TOKENS)
    assert whole.config.n_tokens is None
    assert whole.suppressed is None
    assert thinker(40).config.n_tokens is None
    assert thinker(suppressed_token_ids=[7, 300]).config.suppressed == [7, *range(TOKENS, ROWS)]


def test_ids_are_counted_up_to_the_last() -> None:
    """A tokenizer may leave ids out, and a model may end texts with one that its tokenizer lacks."""
    base_lm, tokenizer = tiny_base(vocab_size=ROWS), byte_tokenizer()
    assert len(tokenizer) == TOKENS
    tokenizer.add_tokens(["<one>"])
    assert (n_tokens(base_lm, tokenizer), padding_ids(base_lm, tokenizer)) == (TOKENS + 1, range(TOKENS + 1, ROWS))
    base_lm.generation_config.eos_token_id = [2, 300]
    assert n_tokens(base_lm, tokenizer) == 301
    assert padding_ids(tiny_base(vocab_size=TOKENS), tokenizer) == range(TOKENS, TOKENS)


@pytest.mark.parametrize("training", [False, True])
def test_thoughts_have_no_padding(training: bool) -> None:
    """In training and evaluation, greedy and sampled; logits and losses of the base pass are the base model's."""
    model = thinker().train(training)
    for temperature in (0.0, 1.0, 30.0):
        output = model(IDS, labels=IDS, thought_temperature=temperature, generator=seeded())
        assert int(output.thoughts.max()) < TOKENS
    free = copy.deepcopy(model)
    free.config.n_tokens = None
    assert int(free(IDS, labels=IDS).thoughts.max()) >= TOKENS
    as_free = free(IDS, labels=IDS, thoughts=output.thoughts)
    torch.testing.assert_close(as_free.logits, output.logits, rtol=1e-4, atol=1e-3)
    assert torch.equal(as_free.base_nll, output.base_nll)


def test_the_policy_learns_the_distribution_that_is_sampled_from() -> None:
    """Log-probabilities of thought tokens are those among the tokenizer's, and padding gets no gradient from them."""
    model, text = thinker(), IDS
    output = model(text, labels=text, generator=seeded())
    temperature, (b, p, i) = model.config.reinforce_temperature, (0, 0, 1)
    words = output.thoughts[b, p, i]
    start = model.thought_embeddings.start[None]
    embeds = torch.cat([model.base_lm.get_input_embeddings()(text[b, : i + 1]), start])
    for j, word in enumerate(words):
        hidden = model.base_lm.base_model(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
        logits = model.base_lm.lm_head(hidden)[:TOKENS] / temperature
        torch.testing.assert_close(
            output.thought_logprob[b, p, i, j], logits.log_softmax(-1)[word], rtol=1e-4, atol=1e-4
        )
        embeds = torch.cat([embeds, model.base_lm.get_input_embeddings()(word)[None]])
    output.policy_loss.backward()
    assert not model.base_lm.lm_head.weight.grad[TOKENS:].any()
    padded = output.thoughts.index_fill(3, torch.tensor([0]), TOKENS + 1)
    with pytest.raises(SettingsError, match=f"thoughts hold token {TOKENS + 1}, which is suppressed"):
        model(text, labels=text, thoughts=padded)


def test_texts_have_no_padding() -> None:
    """Of `generate` with and without thoughts, of a plain model by the commands' settings, and of the server."""
    model, tokenizer = thinker(), byte_tokenizer()
    how = {"max_new_tokens": 8, "do_sample": True, "temperature": 20.0, "top_k": 0, "eos_token_id": None}
    found = model.generate(IDS, **how, pad_token_id=0, thought_temperature=9.0, output_thoughts=True)
    assert int(found.sequences.max()) < TOKENS
    assert int(found.thoughts.tokens.max()) < TOKENS
    plain = text_settings(model.base_lm, tokenizer, 20.0)
    assert plain["suppress_tokens"] == suppressed_ids(model, tokenizer) == list(range(TOKENS, ROWS))
    assert int(model.base_lm.generate(IDS, **plain, max_new_tokens=8).max()) < TOKENS
    model.config.n_tokens = None
    engine = driven(model)
    _, events = engine.ask(a_job(IDS[0].tolist(), "never", max_tokens=8, temperature=2.0))
    engine.finish()
    assert max(event.token for event in events) < TOKENS


def test_it_is_saved_and_found_again(tmp_path: Path) -> None:
    """A model that was saved without it learns it where it meets its tokenizer: in commands, and in training."""
    base = tiny_folder(tmp_path / "base", "llama", vocab_size=ROWS)
    model = QuietStarForCausalLM.from_base(str(base), n_ahead=4)
    model.save_pretrained(tmp_path / "new")
    assert QuietStarForCausalLM.from_pretrained(tmp_path / "new").config.n_tokens == TOKENS
    model.config.n_tokens = None
    model.save_pretrained(tmp_path / "old")
    byte_tokenizer().save_pretrained(tmp_path / "old")
    assert QuietStarForCausalLM.from_pretrained(tmp_path / "old").config.n_tokens is None
    loaded, _ = load_model(tmp_path / "old", UseArguments())
    assert loaded.config.n_tokens == TOKENS
    args = QuietStarTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[])
    assert thinking_model(tmp_path / "old", args, byte_tokenizer()).config.n_tokens == TOKENS
    grown = byte_tokenizer()
    grown.add_tokens(["<one>"])
    set_token_ids(loaded.config, loaded, grown)
    assert loaded.config.n_tokens == TOKENS + 1


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "many", True])
def test_an_impossible_number_is_refused(wrong: object) -> None:
    with pytest.raises(SettingsError, match=r"n_tokens is .*; give a whole number of at least 1"):
        QuietStarForCausalLM.from_base(tiny_base(), n_tokens=wrong)
