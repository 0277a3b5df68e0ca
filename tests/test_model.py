"""The whole model: what forward returns and refuses, and `generate` with everything that belongs to it."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Trainer, TrainingArguments

from quietstar import QuietStarForCausalLM, QuietStarOutput
from quietstar.errors import SettingsError
from quietstar.learn import Labels
from quietstar.output import CACHE
from tests.plain_loop import mismatches, plain_loop
from tests.tiny import FAMILIES, VOCABULARY, make_thoughtful, random_thoughts, texts, tiny_base, tiny_model

CACHED = ["llama", "qwen3", "gpt2", "mistral-window", "qwen2-window", "gemma3_text", "mixtral-window"]
"""learned positions, experts, and every kind of window among them"""


def unlabelled(*lengths: int, left: bool = False, seed: int = 0) -> dict[str, Tensor]:
    return {name: value for name, value in texts(*lengths, left=left, seed=seed).items() if name != "labels"}


# ---------------------------------------------------------------------- thoughts of any length


LENGTHS = [(4, 2), (4, 3), (4, 7), (2, 5), (7, 2)]
"""n_ahead of a config, and the one that is asked for"""


def same(a: QuietStarOutput, b: QuietStarOutput) -> bool:
    """Whether two outputs are equal bit by bit, with the same fields."""
    tensors = [{name: value for name, value in each.items() if isinstance(value, Tensor)} for each in (a, b)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(x, tensors[1][n]) for n, x in tensors[0].items())


@pytest.mark.parametrize(("own", "asked"), LENGTHS)
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_a_length_that_is_asked_for_is_the_configs(family: str, own: int, asked: int) -> None:
    """With labels and their gradients, without, after the last token alone, and over a cache."""
    how: dict = {"n_ahead_talk": 3, "n_passes": 2}
    model, expected = tiny_model(family, n_ahead=own, **how), tiny_model(family, n_ahead=asked, **how)
    gradients = []
    for each, n_ahead in ((model, asked), (expected, None)):
        output = each.train()(**texts(9, 5), n_ahead=n_ahead, generator=torch.Generator().manual_seed(0))
        output.loss.backward()
        gradients.append((output, [p.grad for p in each.parameters() if p.grad is not None]))
    assert same(gradients[0][0], gradients[1][0])
    assert gradients[0][0].thoughts.shape[-1] == asked - 2
    assert all(map(torch.equal, gradients[0][1], gradients[1][1]))
    model.eval(), expected.eval()
    caches = DynamicCache(), DynamicCache()
    with torch.no_grad():
        inputs = unlabelled(9, 5, left=True)
        assert same(model(**inputs, n_ahead=asked), expected(**inputs))
        last = [model(**inputs, cache=caches[0], n_ahead=asked, logits_to_keep=1)]
        last += [expected(**inputs, cache=caches[1], logits_to_keep=1)]
    assert same(*last)
    assert model.config.n_ahead == own


@pytest.mark.parametrize("loss_only", [False, True])
def test_n_ahead_2_samples_nothing(loss_only: bool) -> None:
    """Start and end are computation alone: the random numbers are left as they are, and nothing is reinforced."""
    model, generator = tiny_model(n_ahead=6, n_ahead_talk=2, n_passes=2).train(), torch.Generator().manual_seed(3)
    output = model(**texts(7, 4), n_ahead=2, generator=generator, loss_only=loss_only)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
    assert output.thoughts.shape == (2, 2, 7, 0)
    assert output.policy_loss == 0
    output.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.thought_embeddings.parameters())


def test_thoughts_that_are_given_have_the_length_that_they_have() -> None:
    model, longer = tiny_model(n_ahead=4), tiny_model(n_ahead=7)
    inputs = {**texts(7, 4), "thoughts": random_thoughts(longer, 2, 7)}
    assert same(model(**inputs), longer(**inputs))
    assert same(model(**inputs, n_ahead=7), longer(**inputs))


# ---------------------------------------------------------------------- what comes back


def test_labels_missing_in_the_middle() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=3, n_passes=2)
    inputs = texts(9, 5)
    inputs["labels"][0, [3, 4, 7]] = -100
    inputs["labels"][1, 1] = -100
    inputs["thoughts"] = random_thoughts(model, 2, 9, P=2)
    with torch.no_grad():
        plain = plain_loop(model, **inputs, n_ahead_talk=3)
        assert mismatches(model(**inputs), plain, inputs["attention_mask"]) == {}


@pytest.mark.parametrize("lengths", [(9, 4), (7,), (3, 8, 5)])
def test_a_fresh_models_thoughts_are_rewarded_with_exactly_nothing(lengths: tuple[int, ...]) -> None:
    """The paper's policy weight of a million would make a direction of the smallest rounding."""
    model = QuietStarForCausalLM.from_base(tiny_base(), n_ahead=5, n_ahead_talk=3, n_passes=2).train()
    output = model(**texts(*lengths), loss_only=True)
    assert (output.reward == 0).all()
    assert output.loss == output.nll


@pytest.mark.parametrize("loss_only", [True, False])
def test_nothing_is_learnt_from_no_label(loss_only: bool) -> None:
    model = tiny_model(n_ahead=4).train()
    inputs = texts(6, 3)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    output = model(**inputs, loss_only=loss_only)
    assert output.loss == 0
    output.loss.backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_the_loss_is_nll_and_in_training_the_policy_term_beside_it() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2, policy_weight=7.0)
    inputs = texts(8, 5)
    inputs["thoughts"] = random_thoughts(model, 2, 8, P=2)
    evaluated, trained = model(**inputs), model.train()(**inputs)
    assert evaluated.policy_loss > 0
    assert torch.equal(evaluated.loss, evaluated.nll)
    torch.testing.assert_close(trained.loss, evaluated.nll + 7 * evaluated.policy_loss)


def test_losses_do_not_depend_on_what_else_is_returned() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=3, n_passes=2).train()
    inputs = texts(8, 5, left=True)
    inputs["thoughts"] = random_thoughts(model, 2, 8, P=2)
    everything = model(**inputs)
    bare = model(**inputs, loss_only=True, num_items_in_batch=11)
    assert bare.logits is None
    for name in ("loss", "base_nll", "talk_nll", "reward", "mixing_weight"):
        torch.testing.assert_close(getattr(bare, name), getattr(everything, name), rtol=1e-4, atol=1e-4)
    columns = torch.ones_like(inputs["labels"], dtype=torch.bool)
    whole = Labels.look_ahead(inputs["labels"], columns, 3, inputs["attention_mask"]).complete
    reinforced = (bare.advantage > 0) & whole[:, None]
    of_all, of_some = everything.thought_logprob, bare.thought_logprob
    torch.testing.assert_close(of_some[reinforced], of_all[reinforced], rtol=1e-4, atol=1e-4)
    assert (of_some[~reinforced] == 0).all()
    assert (of_all[~reinforced] != 0).any()
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(bare.loss, parameters), torch.autograd.grad(everything.loss, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_a_row_of_padding_leaves_the_others_alone() -> None:
    model = tiny_model(n_ahead=4, n_ahead_talk=2, n_passes=2).train()
    inputs = texts(6, 4)
    inputs["thoughts"] = random_thoughts(model, 2, 6, P=2)
    with_empty = {name: torch.cat([value, torch.zeros_like(value[:1])]) for name, value in inputs.items()}
    with_empty["labels"][2] = -100
    output, expected = model(**with_empty), model(**inputs)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-4, atol=1e-3)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_no_mask_is_a_mask_of_ones_and_positions_may_be_given() -> None:
    for family in ("llama", "gpt2"):
        model = tiny_model(family, n_ahead=4)
        input_ids = texts(6)["input_ids"]
        with torch.no_grad():
            expected = model(input_ids, attention_mask=torch.ones(1, 6)).logits
            for given in ({}, {"position_ids": torch.arange(6)[None]}):
                torch.testing.assert_close(model(input_ids, **given).logits, expected, rtol=1e-4, atol=1e-3)
            moved = model(input_ids, position_ids=torch.arange(6)[None] + 3).logits
        same = torch.allclose(moved, expected, rtol=1e-3, atol=1e-2)
        assert same == (family == "llama"), "learned positions differ, rotations are relative"


def test_peft_wraps_the_whole_model() -> None:
    """It hands on the arguments of every Hugging Face model."""
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    model, inputs = tiny_model(n_ahead=4), texts(7, 4)
    expected = model(**inputs)
    how = {"target_modules": ["q_proj"], "exclude_modules": ["mixing_head"]}
    for task in ("CAUSAL_LM", None):
        wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(task_type=task, **how)).eval()
        output = wrapped(**inputs)
        torch.testing.assert_close(output.logits, expected.logits)
        torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("family", CACHED)
def test_hidden_states_are_the_base_passs(family: str) -> None:
    """As the base model itself returns them: over a grid, with gradients, and in every step of generation."""
    model, inputs = tiny_model(family, n_ahead=4), texts(7, 7)
    own = model.base_lm(inputs["input_ids"], output_hidden_states=True).hidden_states
    with torch.no_grad():
        at_the_end = model(inputs["input_ids"], logits_to_keep=1, output_hidden_states=True)
    for output in (model(**inputs, output_hidden_states=True), at_the_end):
        assert len(output.hidden_states) == len(own) == 3
        for ours, theirs in zip(output.hidden_states, own, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    how = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0, "eos_token_id": None}
    how |= {"output_hidden_states": True, "return_dict_in_generate": True}
    found = model.generate(inputs["input_ids"], **how)
    assert [[tuple(of.shape) for of in step] for step in found.hidden_states] == [[(2, n, 32)] * 3 for n in (7, 1, 1)]
    with torch.no_grad():
        whole = model.base_lm(found.sequences, output_hidden_states=True).hidden_states
    for n, step in zip((6, 7, 8), found.hidden_states, strict=True):
        for ours, theirs in zip(step, whole, strict=True):
            torch.testing.assert_close(ours[:, -1], theirs[:, n], rtol=1e-3, atol=1e-3)


def test_hidden_states_are_returned_where_the_config_says_so() -> None:
    """Unless an argument says otherwise; attentions are refused in generation, too."""
    model, inputs = tiny_model(n_ahead=4), unlabelled(7, 4)
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == 3
    assert model(**inputs, output_hidden_states=False).hidden_states is None
    with pytest.raises(SettingsError, match="output_attentions was asked for"):
        model.generate(**inputs, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)


# ---------------------------------------------------------------------- what is refused

# ---------------------------------------------------------------------- half precision


def in_bfloat16(family: str) -> tuple[QuietStarForCausalLM, QuietStarForCausalLM]:
    """A bfloat16 model and the same weights in float32."""
    models = []
    for dtype in (torch.bfloat16, torch.float32):
        base_lm: PreTrainedModel = tiny_base(family).to(torch.bfloat16).to(dtype)
        torch.manual_seed(0)
        model = QuietStarForCausalLM.from_base(base_lm, n_ahead=4, n_ahead_talk=3, n_passes=2)
        make_thoughtful(model)
        models.append(model)
    return models[0], models[1]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_bfloat16_keeps_rewards_losses_and_weights_in_float32(family: str) -> None:
    half, full = in_bfloat16(family)
    inputs = texts(8, 5)
    inputs["thoughts"] = random_thoughts(full, 2, 8, P=2)
    ours, expected = half(**inputs), full(**inputs)
    assert ours.logits.dtype == torch.bfloat16
    for name in ("loss", "nll", "policy_loss", "base_nll", "talk_nll", "mixing_weight", "thought_logprob"):
        assert getattr(ours, name).dtype == torch.float32, name
    assert ours.reward.dtype == ours.advantage.dtype == torch.float32
    assert {p.dtype for p in half.mixing_head.parameters()} == {torch.float32}
    assert {p.dtype for p in half.thought_embeddings.parameters()} == {torch.float32}
    for name in ("base_nll", "talk_nll", "mixing_weight", "reward", "thought_logprob"):
        difference = (getattr(ours, name) - getattr(expected, name)).abs().mean()
        assert difference < 0.05 * getattr(expected, name).abs().mean(), name
    assert abs(ours.nll - expected.nll) < 0.02 * expected.nll
    (ours.nll + ours.policy_loss).backward()
    assert all(torch.isfinite(p.grad).all() for p in half.parameters())


# ---------------------------------------------------------------------- with a cache


@pytest.mark.parametrize("bites", [[4, 5], [1] * 9, [3, 1, 1, 4]], ids=str)
@pytest.mark.parametrize("family", CACHED)
def test_a_text_read_in_bites_is_the_text(family: str, bites: list[int]) -> None:
    """Logits of each bite over a cache equal those of the whole, left padding and windows included."""
    model = tiny_model(family, n_ahead=4)
    inputs = unlabelled(9, 6, left=True)
    with torch.no_grad():
        whole = model(**inputs).logits
        cache, first, parts = DynamicCache(), 0, []
        for n in bites:
            part = slice(first, first + n)
            output = model(inputs["input_ids"][:, part], inputs["attention_mask"][:, : part.stop], cache=cache)
            assert output.cache is cache
            assert cache.get_seq_length() == part.stop
            assert output.mixing_weight.shape[2] == output.thoughts.shape[2] == n
            parts.append(output.logits)
            first += n
    real = inputs["attention_mask"].bool()
    tolerance = 1e-4 * float(whole.abs().max()) + 1e-4
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- generate

GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}


def by_hand(model: QuietStarForCausalLM, input_ids: Tensor, n: int) -> Tensor:
    """[S + n]: the likeliest token after a full forward, n times."""
    row = input_ids[None]
    with torch.no_grad():
        for _ in range(n):
            row = torch.cat([row, model(row).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return row[0]


@pytest.mark.parametrize("family", CACHED)
def test_generation_is_the_likeliest_token_after_a_full_forward(family: str) -> None:
    """Batched and padded on the left, past the windows, with a cache and without one."""
    model = tiny_model(family, n_ahead=4)
    prompts = unlabelled(6, 3, left=True)
    cached = model.generate(**prompts, **GREEDY)
    assert torch.equal(cached, model.generate(**prompts, **GREEDY, use_cache=False))
    for b, mask in enumerate(prompts["attention_mask"]):
        prompt = prompts["input_ids"][b, mask.bool()]
        expected = by_hand(model, prompt, 5)
        assert cached[b, 6 - len(prompt) :].tolist() == expected.tolist()
        alone = model.generate(prompt[None], **GREEDY)
        assert alone[0].tolist() == expected.tolist()


def test_thoughts_matter_to_what_is_generated() -> None:
    model = tiny_model(n_ahead=4)
    assert not torch.equal(model.generate(**unlabelled(6), **GREEDY), model.base_lm.generate(**unlabelled(6), **GREEDY))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_generates_what_its_base_does(family: str) -> None:
    """After short prompts and long ones, past the end of every window."""
    base_lm = tiny_base(family)
    model, how = QuietStarForCausalLM.from_base(base_lm, n_ahead=4), {**GREEDY, "max_new_tokens": 16}
    for lengths in ((6, 3), (30, 4)):
        prompts = unlabelled(*lengths, left=True)
        assert torch.equal(model.generate(**prompts, **how), base_lm.generate(**prompts, **how))


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_the_cache_holds_the_text_and_no_branch(family: str) -> None:
    model = tiny_model(family, n_ahead=6)
    output = model.generate(**unlabelled(6, 3, left=True), **GREEDY, return_dict_in_generate=True)
    assert output.sequences.shape == (2, 11)
    assert output[CACHE].get_seq_length() == 10  # the last token was never read
    if family == "llama":
        assert {layer.keys.shape[-2] for layer in output[CACHE].layers} == {10}


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "temperature": 50.0, "top_k": 0}, {"num_beams": 3}], ids=str)
def test_suppressed_tokens_are_never_generated(how: dict) -> None:
    ids = list(range(0, VOCABULARY, 2))
    model = tiny_model(n_ahead=4, suppressed_token_ids=ids)
    torch.manual_seed(0)
    rows = model.generate(**unlabelled(4, 4), **{**GREEDY, "max_new_tokens": 25, **how})
    assert rows.shape == (2, 29)
    assert (rows[:, 4:] % 2 == 1).all()


def test_beam_search_is_the_same_without_a_cache() -> None:
    model = tiny_model(n_ahead=4)
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    found = model.generate(**unlabelled(6, 3, left=True), **beams)
    assert found.shape == (4, 11)
    assert torch.equal(found, model.generate(**unlabelled(6, 3, left=True), **beams, use_cache=False))


def test_sampling_repeats_with_its_seed() -> None:
    model = tiny_model(n_ahead=4)
    sampling = {**GREEDY, "do_sample": True, "temperature": 2.0, "num_return_sequences": 3}
    rows = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        rows.append(model.generate(**unlabelled(4), **sampling))
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert len({tuple(row) for row in rows[0].tolist()}) == 3


def test_generation_stops_at_the_end_of_text_and_streams() -> None:
    model = tiny_model(n_ahead=4)
    prompt = unlabelled(6)
    free = model.generate(**prompt, **GREEDY)[0, 6:].tolist()
    end = free[3]
    heard: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            heard.extend(value.flatten().tolist())

        def end(self) -> None:
            heard.append(-1)

    stopped = model.generate(**prompt, **{**GREEDY, "eos_token_id": end}, streamer=Streamer())[0, 6:].tolist()
    assert stopped == free[: free.index(end) + 1]
    assert heard == [*prompt["input_ids"][0].tolist(), *stopped, -1]


def test_generation_guesses_ahead_without_changing_a_token() -> None:
    """Prompt lookup asks for logits at several new positions and takes keys back from the cache."""
    model = tiny_model(n_ahead=4)
    prompt = texts(4)["input_ids"].repeat(1, 3)
    expected = model.generate(prompt, **{**GREEDY, "max_new_tokens": 12})
    assert torch.equal(model.generate(prompt, **{**GREEDY, "max_new_tokens": 12}, prompt_lookup_num_tokens=3), expected)


def test_the_model_as_an_object() -> None:
    """What other tools ask of a Hugging Face model."""
    model = tiny_model(n_ahead=4)
    assert isinstance(model(**unlabelled(3)), QuietStarOutput)
    assert isinstance(model(**unlabelled(3)), dict)
    assert model.config.vocab_size == VOCABULARY
    assert model.config.get_text_config() is model.base_lm.config
    assert model.get_input_embeddings() is model.base_lm.get_input_embeddings()
    assert model.get_output_embeddings() is model.base_lm.lm_head
    assert model.can_generate()
    assert model.generation_config.eos_token_id == 2


def test_accumulated_batches_are_averaged_by_any_trainer(tmp_path: Path) -> None:
    """A trainer that is not ours makes of eight batches of one row what it makes of one batch of eight."""
    rows = [{"input_ids": row, "labels": row} for row in texts(*[12] * 8)["input_ids"]]
    norms = []
    for batch_size in (8, 2, 1):
        how = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 8 // batch_size}
        args = TrainingArguments(
            str(tmp_path), max_steps=1, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", **how
        )
        model = tiny_model(n_ahead=4, n_passes=1, policy_weight=0.0, thought_temperature=0.0)
        trainer = Trainer(model=model, args=args, train_dataset=rows)
        trainer.train()
        norms.append((trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]))
    assert norms[1:] == [pytest.approx(norms[0], rel=1e-3)] * 2
