"""`generate` with what belongs to a thinking model: policies, thoughts returned, beams, and what it refuses."""

from string import ascii_lowercase
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer, pipeline

from quietstar import QuietStarForCausalLM
from quietstar.errors import SettingsError
from quietstar.journal import FINISHED, Journal
from quietstar.policy import Moment, ThinkPolicy
from tests.test_decode import prompts
from tests.tiny import VOCABULARY, tiny_model
from tests.tiny_tokenizer import byte_tokenizer

PLAIN: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 6}


def test_thoughts_are_returned_for_each_token() -> None:
    """Whether and why it thought, the thought, the weight, and three predictions, as a forward pass makes them."""
    model, inputs = tiny_model(n_ahead=4), prompts(5, 3)
    found = model.generate(**inputs, **PLAIN, output_thoughts=True, think="entropy:2.2,budget:3", output_logits=True)
    written = found.thoughts
    assert written.tokens.shape == (2, 6, 2)
    assert written.thought.sum(1).tolist() == [3, 3]
    assert not written.tokens[~written.thought].any()
    assert not written.mixing_weight[~written.thought].any()
    for n, row in enumerate(written):
        for t, token in enumerate(row):
            text = found.sequences[n : n + 1, : 5 + t]
            mask = torch.nn.functional.pad(inputs["attention_mask"][n : n + 1], (0, t), value=1)
            with torch.no_grad():
                base = model.base_lm(text, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
                mixed = model(text, mask, logits_to_keep=1, think="always" if token.thought else "never").logits
            assert [i for i, _ in token.base] == base[0, -1].topk(5).indices.tolist()
            assert [i for i, _ in token.mixed] == mixed[0, -1].topk(5).indices.tolist()
            likeliest = found.logits[t][n].log_softmax(-1).topk(5).values
            torch.testing.assert_close(torch.tensor([p for _, p in token.mixed]), likeliest, rtol=1e-4, atol=1e-4)
            nats = float(torch.distributions.Categorical(logits=base[0, -1]).entropy())
            assert token.reason.startswith(f"entropy {nats:.2f}, from 2.2 on; ")
            assert bool(token.tokens) == bool(token.thought_alone) == token.thought
            assert token.thought == (nats >= 2.2 and written.thought[n, :t].sum() < 3)


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "thought_temperature": 1.0},
    "a policy": {"think": "entropy:2.2,budget:3"},
    "no cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "a prompt in chunks": {"prefill_chunk_size": 2},
}


@pytest.mark.parametrize(("own", "asked"), [(4, 2), (4, 7), (2, 5)])
@pytest.mark.parametrize("way", WAYS)
def test_a_length_that_is_asked_for_is_the_configs(way: str, own: int, asked: int) -> None:
    """Rows are padded on the left; the thoughts that are returned are the same, too."""
    found = []
    for model, n_ahead in ((tiny_model(n_ahead=own), asked), (tiny_model(n_ahead=asked), None)):
        torch.manual_seed(0)
        how = {**PLAIN, **WAYS[way], "output_thoughts": True, "output_logits": True, "n_ahead": n_ahead}
        found.append(model.generate(**prompts(6, 3), **how))
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert found[0].thoughts.tokens.shape[-1] == asked - 2
    assert torch.equal(found[0].thoughts.tokens, found[1].thoughts.tokens)
    assert torch.equal(found[0].thoughts.mixing_weight, found[1].thoughts.mixing_weight)
    assert all(map(torch.equal, found[0].logits, found[1].logits))


def test_assisted_generation_thinks_as_long_as_it_is_asked() -> None:
    """The assistant thinks as long; one that does not think cannot be told."""
    model, expected = tiny_model(n_ahead=4), tiny_model(n_ahead=6).generate(**prompts(5), **PLAIN)
    assistant = tiny_model(n_ahead=4, seed=1)
    assert torch.equal(model.generate(**prompts(5), **PLAIN, n_ahead=6, assistant_model=assistant), expected)
    with pytest.raises(SettingsError, match=r"handed to the assistant, which does not think; set config\.n_ahead"):
        model.generate(**prompts(5), **PLAIN, n_ahead=6, assistant_model=model.base_lm)


@pytest.mark.parametrize("num_return_sequences", [1, 3])
def test_beams_take_their_thoughts_along(num_return_sequences: int) -> None:
    """Each returned sequence has the thoughts that it was written with, and budgets follow beams."""
    model, inputs = tiny_model("mistral-window", n_ahead=4), prompts(6, 3)
    how = {**PLAIN, "num_beams": 3, "num_return_sequences": num_return_sequences, "output_thoughts": True}
    found = model.generate(**inputs, **how, think="budget:4")
    assert found.sequences.shape[0] == 2 * num_return_sequences
    assert found.thoughts.thought.tolist() == [[True] * 4 + [False] * 2] * (2 * num_return_sequences)
    for n, sequence in enumerate(found.sequences):
        mask = inputs["attention_mask"][n // num_return_sequences]
        for t in range(4):
            row, seen = sequence[None, : 6 + t], torch.nn.functional.pad(mask, (0, t), value=1)[None]
            with torch.no_grad():
                alone = model(row, seen, logits_to_keep=1)
            assert torch.equal(alone.thoughts[0, 0, -1], found.thoughts.tokens[n, t])


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_that_end_early_have_the_thoughts_of_their_own_tokens(
    early_stopping: bool | str, length_penalty: float
) -> None:
    """Beam search goes on after the best sequence has ended."""
    model, inputs = tiny_model(n_ahead=4), prompts(6)
    ends = {"eos_token_id": [5, 9, 17, 23, 30, 41], "max_new_tokens": 12, "early_stopping": early_stopping}
    how = {**PLAIN, **ends, "num_beams": 3, "length_penalty": length_penalty, "output_thoughts": True}
    found = model.generate(**inputs, **how)
    n_tokens = found.sequences.shape[1] - 6
    assert found.thoughts.tokens.shape[1] == n_tokens
    for t in range(n_tokens):
        with torch.no_grad():
            alone = model(found.sequences[:, : 6 + t], logits_to_keep=1)
        assert torch.equal(alone.thoughts[0, 0, -1], found.thoughts.tokens[0, t])


def test_a_journal_is_used_again() -> None:
    """For another call, from the beginning; and says itself where to think."""
    model, journal = tiny_model(n_ahead=4), Journal(ThinkPolicy.parse("budget:3"), keep=True)
    both = [model.generate(**prompts(6), **PLAIN, output_thoughts=journal).thoughts for _ in range(2)]
    assert both[0].thought.tolist() == both[1].thought.tolist() == [[True] * 3 + [False] * 3]
    with pytest.raises(SettingsError, match="has its own policy"):
        model.generate(**prompts(6), **PLAIN, output_thoughts=journal, think="never")


def test_an_assistant_guesses_ahead_without_changing_a_token() -> None:
    """The base model, or a thinking one."""
    model, inputs = tiny_model(n_ahead=4), {"input_ids": prompts(6)["input_ids"]}
    expected = model.generate(**inputs, **PLAIN)
    for assistant in (model.base_lm, tiny_model(n_ahead=4, seed=1)):
        assert torch.equal(model.generate(**inputs, **PLAIN, assistant_model=assistant), expected)
    with pytest.raises(SettingsError, match="guessed ahead"):
        model.generate(**inputs, **PLAIN, assistant_model=model.base_lm, think="never")


def test_thoughts_are_greedy_in_training_mode_too() -> None:
    """Unless a temperature is given."""
    model = tiny_model(n_ahead=5)
    expected = model.generate(**prompts(6), **PLAIN, output_thoughts=True).thoughts.tokens
    model.train()
    assert torch.equal(model.generate(**prompts(6), **PLAIN, output_thoughts=True).thoughts.tokens, expected)


def test_autocast_takes_every_policy() -> None:
    """Base predictions that a policy has looked at are as the others are."""
    with torch.autocast("cpu", torch.bfloat16):
        for think in ("entropy:2", "always", "never"):
            assert tiny_model(n_ahead=4).generate(**prompts(6, 3), **PLAIN, think=think).shape == (2, 12)


def test_beams_share_a_budget_between_none() -> None:
    """A count that belongs to a row moves with it: thinking by parity of the count differs where it does not."""

    def by_count(moment: Moment) -> Tensor:
        assert len(moment.n_thoughts) == 6
        return moment.rows % 2 == moment.n_thoughts[moment.rows] % 2

    model, inputs = tiny_model(n_ahead=4), prompts(6, 3)
    found = model.generate(**inputs, **PLAIN, num_beams=3, output_thoughts=True, think=by_count)
    beams = found.beam_indices
    counts = found.thoughts.thought.long().cumsum(1) - found.thoughts.thought.long()
    assert torch.equal(found.thoughts.thought, beams % 2 == counts % 2)


def test_rows_that_have_ended_stop_thinking() -> None:
    """Padding after the end of a text is not thought about, and the others go on as if alone."""
    model, inputs = tiny_model(n_ahead=4), prompts(6, 4)
    free = model.generate(**inputs, **PLAIN)[:, 6:]
    end = next(int(token) for token in free[0, 1:3] if token not in free[1])
    found = model.generate(**inputs, **{**PLAIN, "eos_token_id": end}, output_thoughts=True)
    at = free[0].tolist().index(end)
    assert found.thoughts.thought[0].tolist() == [t <= at for t in range(6)]
    assert found.thoughts[0, at + 1].reason == FINISHED
    assert found.thoughts.thought[1].all()
    assert torch.equal(found.sequences[1, 6:], free[1])


def test_thoughts_are_sampled_and_repeat_with_their_seed() -> None:
    """At a temperature, and within a nucleus; top-p next to 0 is greedy."""
    model, inputs = tiny_model(n_ahead=6), prompts(6, 3)

    def thoughts(seed: int, **how: float) -> list:
        torch.manual_seed(seed)
        return model.generate(**inputs, **PLAIN, output_thoughts=True, **how).thoughts.tokens.tolist()

    greedy = thoughts(0)
    assert thoughts(1) == greedy
    assert thoughts(0, thought_temperature=1.0) == thoughts(0, thought_temperature=1.0) != greedy
    assert thoughts(0, thought_temperature=1.0) != thoughts(1, thought_temperature=1.0)
    assert thoughts(0, thought_temperature=1.0, thought_top_p=1e-6) == greedy


@pytest.mark.parametrize("top_p", [1.0, 0.05])
def test_suppressed_tokens_are_neither_thought_nor_said(top_p: float) -> None:
    """Whatever temperature or processor there is; and something is left to draw from."""
    banned = list(range(5, 55))
    model = tiny_model(n_ahead=5, suppressed_token_ids=banned)
    found = model.generate(
        **prompts(6, 3),
        eos_token_id=None,
        pad_token_id=0,
        max_new_tokens=20,
        do_sample=True,
        temperature=30.0,
        top_k=0,
        top_p=top_p,
        thought_temperature=30.0,
        thought_top_p=top_p,
        sequence_bias={(7,): 1000.0},
        output_thoughts=True,
    )
    assert not torch.isin(found.sequences[:, 6:], torch.tensor(banned)).any()
    assert not torch.isin(found.thoughts.tokens, torch.tensor(banned)).any()


@pytest.fixture
def bytes_model() -> QuietStarForCausalLM:
    """Speaks lower-case letters."""
    tokenizer = byte_tokenizer()
    banned = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) not in ascii_lowercase]
    return tiny_model(n_ahead=4, base={"vocab_size": len(tokenizer)}, suppressed_token_ids=banned)


def test_the_pipeline_works(bytes_model: QuietStarForCausalLM) -> None:
    """text-generation, one prompt and several, as for any model."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    speak = pipeline("text-generation", model=bytes_model, tokenizer=tokenizer)
    how = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    both = speak(["one two", "three"], batch_size=2, **how)
    assert [found[0]["generated_text"] for found in both] == [
        speak(text, **how)[0]["generated_text"] for text in ("one two", "three")
    ]
    assert both != speak(["one two", "three"], batch_size=2, think="never", **how)


def test_streamers_and_stop_strings_work(bytes_model: QuietStarForCausalLM) -> None:
    """Text comes piece by piece, and ends where a string says so; a journal can be read meanwhile."""
    tokenizer = byte_tokenizer()
    inputs = tokenizer("some text", return_tensors="pt")
    how = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 2, "eos_token_id": None}
    free = bytes_model.generate(inputs["input_ids"], **how)[0]
    journal = Journal(ThinkPolicy.parse("always"), keep=True)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    bytes_model.generate(inputs["input_ids"], **how, streamer=streamer, output_thoughts=journal)
    assert "".join(streamer) == tokenizer.decode(free[inputs["input_ids"].shape[1] :])
    assert len(journal.steps) == 8
    stop = tokenizer.decode(free[-6:-4])
    assert stop.isalpha()
    stopped = bytes_model.generate(inputs["input_ids"], **how, stop_strings=[stop], tokenizer=tokenizer)[0]
    assert torch.equal(stopped, free[: len(stopped)])
    assert tokenizer.decode(stopped).endswith(stop)
    assert len(stopped) <= len(free) - 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an empty prompt": ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token"),
    "a prompt beyond the context": ({"input_ids": torch.ones(1, 126, dtype=torch.long)}, "context of 128"),
    "a thought beyond the context": ({"n_ahead": 128}, "n_ahead is 128, and the model's context 128; give at most 127"),
    "a prompt and a thought beyond it": (
        {"n_ahead": 125},
        "4 tokens and a thought of 125 are .* give at most 3 tokens",
    ),
    "no start and end": ({"n_ahead": 1}, "n_ahead is 1; give a whole number of at least 2"),
    "a length as text": ({"n_ahead": "8"}, "n_ahead is '8'; give a whole number"),
    "no policy": ({"think": "sometimes"}, "choose from"),
    "a temperature": ({"thought_temperature": -1.0}, "at least 0"),
    "a nucleus": ({"thought_top_p": 0.0}, "above 0"),
    "guidance": ({"guidance_scale": 1.8, "think": "never"}, "guidance_scale"),
    "guessing ahead": ({"output_thoughts": True, "prompt_lookup_num_tokens": 3}, "guessed ahead"),
    "beams without a cache": ({"think": "budget:3", "num_beams": 2, "use_cache": False}, "without a cache"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 3, 32)}, "input_ids"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_in_one_line(what: str) -> None:
    """Before anything is generated."""
    how, says = REFUSED[what]
    given = {**({} if "inputs_embeds" in how else {"input_ids": torch.full((1, 4), 5)}), **PLAIN, **how}
    with pytest.raises(SettingsError, match=says) as raised:
        tiny_model(n_ahead=4).generate(**given)
    assert "\n" not in str(raised.value)


def test_nothing_outside_the_vocabulary_is_said() -> None:
    """Start and end of a thought are no words."""
    found = tiny_model(n_ahead=4).generate(**prompts(5), **{**PLAIN, "do_sample": True}, top_k=0, temperature=50.0)
    assert int(found.max()) < VOCABULARY
