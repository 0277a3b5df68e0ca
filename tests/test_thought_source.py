"""Thoughts of the controls: which tokens they have, and that they are the same wherever the model thinks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from quietstar import QuietStarForCausalLM
from quietstar.config import THOUGHT_SOURCES
from quietstar.errors import SettingsError
from quietstar.policy import ThinkPolicy
from quietstar.serving.batch import Batch, Thinking
from tests.tiny import texts, tiny_model
from tests.tiny_tokenizer import byte_tokenizer

CONTROLS = [kind for kind in THOUGHT_SOURCES if kind != "sampled"]
FILLER = 7


def model_of(kind: str, **settings: object) -> QuietStarForCausalLM:
    given = {"filler_token_id": FILLER, "n_ahead": 5, "n_ahead_talk": 2, "n_passes": 2}
    return tiny_model(thought_source=kind, **given | settings)


def copied(row: list[int], K: int) -> list[list[int]]:
    """For each position, the last K tokens up to it; the first token in front of a short text."""
    return [([row[0]] * K + row[: i + 1])[-K:] for i in range(len(row))]


@pytest.mark.parametrize("side", ["left", "right"])
def test_copies_are_the_last_tokens_of_each_row(side: str) -> None:
    model, inputs = model_of("copy"), texts(7, 2)
    if side == "left":
        inputs = {name: value.clone() for name, value in inputs.items()}
        for value in inputs.values():
            value[1] = value[1].roll(5)
    thoughts = model(inputs["input_ids"], inputs["attention_mask"]).thoughts
    for row, mask, found in zip(inputs["input_ids"], inputs["attention_mask"], thoughts, strict=True):
        real = mask.bool()
        assert found[0][real].tolist() == copied(row[real].tolist(), 3)


def test_fillers_are_one_token() -> None:
    output = model_of("filler").train()(**texts(7, 2))
    assert set(output.thoughts.unique().tolist()) <= {0, FILLER}
    assert not output.advantage.any()


def test_random_thoughts_come_from_the_whole_vocabulary_but_what_is_suppressed() -> None:
    model = model_of("random", suppressed_token_ids=[3, 4], n_tokens=50)
    ids = torch.randint(5, 50, (8, 60), generator=torch.Generator().manual_seed(0))
    draws = [model(ids, generator=torch.Generator().manual_seed(seed)).thoughts for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert set(draws[0].unique().tolist()) == set(range(50)) - {3, 4}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", CONTROLS)
def test_nothing_of_a_control_is_reinforced(kind: str) -> None:
    """The nll is learned, and it is all that is learned; a suppressed token in the text does no harm."""
    model = model_of(kind, policy_weight=5.0, suppressed_token_ids=[9]).train()
    inputs = texts(7, 4)
    inputs["input_ids"][0, 2] = 9
    found = []
    for loss_only in (False, True):
        model.zero_grad()
        output = model(**inputs, loss_only=loss_only, generator=generator())
        assert output.policy_loss == 0
        assert torch.equal(output.loss, output.nll)
        assert output.reward.any()
        assert not output.advantage.any()
        assert output.drawn_logprob is None
        output.loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for ours, theirs in zip(*found, strict=True):
        if kind != "random":  # which draws others at the fewer positions of a loss
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["cached", "in parts"])
@pytest.mark.parametrize("kind", CONTROLS)
def test_a_control_learns_as_if_its_thoughts_were_given(kind: str, checkpointing: bool) -> None:
    model, inputs = model_of(kind).train(), texts(7, 4)
    if checkpointing:
        model.gradient_checkpointing_enable()
    output = model(**inputs, generator=generator())
    given = model(**inputs, thoughts=output.thoughts)
    torch.testing.assert_close(output.loss, given.loss)


def greedy(model: QuietStarForCausalLM, inputs: dict[str, Tensor], **how: object) -> Tensor:
    asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return model.generate(**asked, max_new_tokens=6, min_new_tokens=6, do_sample=False, **how)


@pytest.mark.parametrize("kind", ["filler", "copy"])
def test_generation_thinks_as_a_grid_does(kind: str) -> None:
    """Rows of unequal length, padded on the left, with a cache and without."""
    model, inputs = model_of(kind), texts(7, 2)
    for value in inputs.values():
        value[1] = value[1].roll(5)
    grown = greedy(model, inputs, output_thoughts=True)
    said = grown.sequences
    assert torch.equal(said, greedy(model, inputs, use_cache=False))
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long)], dim=1)
    with torch.no_grad():
        read = model(said, mask)
    assert torch.equal(read.logits[:, 6:-1].argmax(-1), said[:, 7:])
    assert torch.equal(grown.thoughts.tokens, read.thoughts[:, 0, 6:-1])


def test_beams_copy_their_own_text() -> None:
    model, inputs = model_of("copy"), texts(7)
    grown = greedy(model, inputs, num_beams=3, output_thoughts=True)
    row = grown.sequences[0].tolist()
    assert grown.thoughts.tokens[0].tolist() == copied(row, 3)[6 : len(row) - 1]


def test_batches_of_the_server_copy_their_own_text() -> None:
    """Texts that join and leave, of unequal length."""
    model = model_of("copy")
    batch = Batch(model, Thinking(ThinkPolicy.parse("always"), model.config.n_ahead))
    rows = [[11, 12, 13, 14, 15], [21, 22]]
    for row in rows:
        other = Batch(model, batch.thinking, n_texts=1)
        other.skim(torch.tensor([row[:-1]]))
        batch.join(other)
    step = batch.read(torch.tensor([[row[-1]] for row in rows]))[1]
    assert step.tokens.tolist() == [[13, 14, 15], [21, 21, 22]]
    batch.keep([1])
    assert batch.read(torch.tensor([[23]]))[1].tokens.tolist() == [[21, 22, 23]]


def test_a_cache_without_its_tokens_cannot_be_copied_from() -> None:
    model, ids = model_of("copy"), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache
        with pytest.raises(SettingsError, match=r"tokens in the cache are not known; call generate"):
            model(torch.tensor([[8]]), cache=cache)


@pytest.mark.parametrize("kind", THOUGHT_SOURCES)
def test_a_model_without_thought_tokens_has_nothing_to_fill(kind: str) -> None:
    model = model_of(kind, n_ahead=2)
    assert model(**texts(5)).thoughts.shape[-1] == 0
    assert greedy(model, texts(5)).shape == (1, 11)


def test_a_filler_is_found_by_its_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    base = tiny_model().base_lm
    model = QuietStarForCausalLM.from_base(base, tokenizer=tokenizer, thought_source="filler", filler_text="hm")
    assert model.config.filler_token_id == tokenizer("h", add_special_tokens=False)["input_ids"][0]
    model.save_pretrained(tmp_path)
    again = QuietStarForCausalLM.from_pretrained(tmp_path).config
    assert (again.thought_source, again.filler_token_id) == ("filler", model.config.filler_token_id)


def test_a_filler_that_is_not_known_is_told_in_one_line() -> None:
    model = model_of("filler", filler_token_id=None)
    with pytest.raises(SettingsError, match=r"its token is not known.*set filler_token_id"):
        model(**texts(5))
