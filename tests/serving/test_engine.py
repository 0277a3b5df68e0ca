"""The engine: whatever else is in the batch, each text is what `generate` writes for it alone."""

import random
from typing import Any

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.predict import Predictions
from quietstar.serving import prompts as prompts_module
from quietstar.serving import what_if
from quietstar.serving.batch import Batch
from quietstar.serving.faults import RequestError
from quietstar.serving.jobs import Job, Returned, Written
from quietstar.text.pieces import one_line
from tests.serving.running import CONTEXT, N_AHEAD, a_job, alone, driven, running_engine, speaking_model
from tests.tiny_tokenizer import byte_tokenizer

POLICIES = ["always", "never", "every:3", "entropy:3", "budget:3", "entropy:3,budget:2", "margin:0.2"]
FAMILIES = ["llama", "mistral-window", "gemma3_text", "gpt2"]


def random_job(draw: random.Random, longest: int = 40) -> Job:
    """Return a random job, of any length and with any settings."""
    sampled: dict[str, Any] = {"thought_temperature": draw.choice([0.7, 1.0])} if draw.random() < 0.4 else {}
    if draw.random() < 0.3:
        sampled |= {"frequency_penalty": draw.choice([0.8, -1.0]), "presence_penalty": draw.choice([0.0, 1.5])}
        sampled |= {"logit_bias": {draw.randrange(3, 259): draw.choice([-100.0, 4.0]) for _ in range(5)}}
    policy = (
        draw.choice([*POLICIES[:4], "budget:3"]) if draw.random() < 0.8 else draw.choice([*POLICIES, "probability:0.5"])
    )
    return a_job(
        [draw.randrange(3, 259) for _ in range(draw.choice([1, 2, 7, 19, longest]))],
        policy,
        max_tokens=draw.choice([1, 2, 5, 14]),
        seed=draw.randrange(1000),
        n=draw.choice([1, 1, 1, 3]),
        temperature=draw.choice([0.0, 0.0, 1.0, 0.7]),
        top_p=draw.choice([1.0, 0.8]),
        wants_thoughts=draw.random() < 0.6,
        top_logprobs=draw.choice([None, None, 0, 5]),
        more=[[draw.randrange(3, 259)] * 5] if draw.random() < 0.2 else [],
        n_ahead=draw.choice([N_AHEAD, N_AHEAD, 2, 7]),
        **sampled,
    )


def check(model: QuietStarForCausalLM, job: Job, events: list) -> None:
    """Check that tokens, thoughts, reasons, weights and predictions of every choice equal those of `generate`."""
    for choice in range(job.n_texts):
        written = [event for event in events if event.choice == choice]
        tokens, thoughts = alone(model, job, choice)
        assert [each.token for each in written] == tokens
        assert [each.finish_reason for each in written[:-1]] == [None] * (len(written) - 1)
        assert written[-1].finish_reason == ("stop" if tokens[-1] == 2 else "length")
        for t, each in enumerate(written):
            expected, found = thoughts[0, t], each.thought
            assert each.n_thought_tokens == len(expected.tokens)
            assert each.thought_text == one_line(byte_tokenizer().decode(expected.tokens))
            if job.top_logprobs is None:
                assert each.logprob is None
            else:
                likeliest = [top["logprob"] for top in each.logprob["top_logprobs"]]
                assert likeliest == pytest.approx([value for _, value in expected.mixed[: job.top_logprobs]], abs=1e-3)
                of_all = dict(expected.mixed)
                assert each.logprob["logprob"] == pytest.approx(
                    of_all.get(each.token, each.logprob["logprob"]), abs=1e-3
                )
            if not job.wants_thoughts:
                assert found is None
                continue
            assert (found["thought"], found["thought_ids"]) == (expected.thought, expected.tokens)
            assert found["reason"] == expected.reason
            assert found["id"] == each.token
            assert found["thought_text"] == byte_tokenizer().decode(expected.tokens)
            if expected.thought:
                assert found["mixing_weight"] == pytest.approx(expected.mixing_weight, abs=1e-3)
            for name in ("base", "thought_alone", "mixed"):
                assert [top["id"] for top in found[name]] == [i for i, _ in getattr(expected, name)]
                logprobs = [logprob for _, logprob in getattr(expected, name)]
                assert [top["logprob"] for top in found[name]] == pytest.approx(logprobs, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_join_and_leave_are_written_as_if_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time, of any length, greedy and sampled; prompts are read in parts, and some requests are cancelled."""
    monkeypatch.setattr(prompts_module, "TOKENS_AT_ONCE", 8)
    model, draw = speaking_model(family, letters=False), random.Random(FAMILIES.index(family))
    engine = driven(model, max_batch=9)
    asked, left = [], []
    for _ in range(18):
        job = random_job(draw)
        ticket, events = engine.ask(job)
        if draw.random() < 0.15:
            left.append((ticket, events))
        else:
            asked.append((job, events))
        for _ in range(draw.choice([0, 0, 1, 3])):
            engine.turn()
        for gone, _ in left:
            if draw.random() < 0.5:
                engine.cancel(gone)
    for gone, _ in left:
        engine.cancel(gone)
    engine.finish()
    assert not engine.groups
    for job, events in asked:
        check(model, job, events)
    for _, events in left:
        assert isinstance(events[-1], RequestError) or events[-1].finish_reason is not None


def test_lengths_of_thoughts_have_batches_of_their_own() -> None:
    """A length that is asked for is not distinguished from the server's own."""
    engine = driven(speaking_model())
    for n_ahead in (N_AHEAD, 7, 7, 2):
        engine.ask(a_job([5, 6], max_tokens=4, n_ahead=n_ahead))
    engine.turn()
    assert sorted((group.thinking.n_ahead, len(group)) for group in engine.groups.values()) == [
        (2, 1),
        (N_AHEAD, 1),
        (7, 2),
    ]


def test_a_servers_length_is_that_of_its_answers_to_questions() -> None:
    """As are its own thoughts in texts."""
    model, ids = speaking_model(), [5, 6, 7]
    parts = what_if.Question(ids, None, n_ahead=7).answer(model, byte_tokenizer())
    with pytest.raises(StopIteration) as end:
        next(parts)
    _, thoughts = alone(model, a_job(ids, n_ahead=7, max_tokens=1, temperature=0.0))
    assert end.value.value["thought"]["ids"] == thoughts.tokens[0, 0].tolist()


def batch_of(model: QuietStarForCausalLM, *lengths: int, think: str = "always") -> tuple[Batch, list[list[int]]]:
    """Return a batch of texts of these lengths, and the last token of each, which it has not read yet."""
    draw = random.Random(0)
    texts = [[draw.randrange(3, 259) for _ in range(n)] for n in lengths]
    whole = Batch(model, a_job([3], think).thinking)
    for text in texts:
        one = Batch(model, a_job([3], think).thinking, n_texts=1)
        one.skim(torch.tensor([text]))
        whole.join(one)
    return whole, texts


def far_off(model: QuietStarForCausalLM, batch: Batch, texts: list[list[int]]) -> float:
    """Return how far the batch's predictions after one more token are from each text's alone."""
    logits, _ = batch.read(torch.full((len(texts), 1), 77))
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([[*text, 77]]), logits_to_keep=1).logits[:, 0] for text in texts])
    return float((logits - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_predicts_what_each_text_alone_does(family: str) -> None:
    """Also after some have left, and without more padding than the longest needs."""
    model = speaking_model(family, letters=False)
    batch, texts = batch_of(model, 3, 30, 9, 1)
    assert far_off(model, batch, texts) < 1e-4
    texts = [[*text, 77] for text in texts]
    batch.keep([2, 0])
    assert batch.mask.shape == (2, 10)
    assert batch.cache.layers[0].keys.shape[2] == 10
    assert far_off(model, batch, [texts[2], texts[0]]) < 1e-4


def padding_seen(patch: pytest.MonkeyPatch) -> None:
    """The mask of a joining text is not padded with zeros."""
    right = Batch.join

    def wrong(self: Batch, other: Batch) -> None:
        right(self, other)
        self.mask[-1] = 1

    patch.setattr(Batch, "join", wrong)


def keys_on_the_right(patch: pytest.MonkeyPatch) -> None:
    """Keys of shorter texts are padded on the wrong side."""
    pad = torch.nn.functional.pad
    patch.setattr("quietstar.serving.batch._pad_left", lambda of, S: pad(of, (0, 0, 0, S - of.shape[2])))


def wrong_text_leaves(patch: pytest.MonkeyPatch) -> None:
    """The wrong text's keys and masks are removed."""
    right = Batch.keep
    patch.setattr(Batch, "keep", lambda self, rows: right(self, [(row + 1) % len(self) for row in rows]))


@pytest.mark.parametrize("error", [padding_seen, keys_on_the_right, wrong_text_leaves])
def test_a_deliberate_error_is_noticed(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them changes a batch's predictions."""
    model = speaking_model("llama", letters=False)
    error(monkeypatch)
    batch, texts = batch_of(model, 9, 30, 3)
    batch.keep([0, 2])
    assert far_off(model, batch, [texts[0], texts[2]]) > 1e-2


def test_budgets_belong_to_texts() -> None:
    """A text that joins late has its whole budget."""
    engine = driven(speaking_model(letters=False))
    _, first = engine.ask(a_job([9, 8, 7], "budget:3", max_tokens=10, temperature=0.0))
    for _ in range(5):
        engine.turn()
    _, second = engine.ask(a_job([5, 6], "budget:3", max_tokens=6, temperature=0.0, n=2))
    engine.finish()
    assert [bool(e.n_thought_tokens) for e in first] == [True] * 3 + [False] * 7
    for choice in range(2):
        assert [bool(e.n_thought_tokens) for e in second if e.choice == choice] == [True] * 3 + [False] * 3


def test_texts_thought_about_alike_share_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty-two texts take the steps of one, greedy thoughts as sampled ones."""
    sizes: list[int] = []
    right = Batch.read
    monkeypatch.setattr(Batch, "read", lambda self, ids, *more: sizes.append(len(ids)) or right(self, ids, *more))
    engine = driven(speaking_model(letters=False))
    for drawn in (0.0, 1.0):
        sizes.clear()
        for i in range(32):
            engine.ask(a_job([9, 8, 7 + i % 3], temperature=0.0, max_tokens=40, seed=i, thought_temperature=drawn))
        engine.finish()
        assert set(sizes) == {32}


def test_nobody_waits_for_more_of_others_prompts_than_some_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per turn, over all prompts; a prompt is read and counted once for all of its choices."""
    monkeypatch.setattr(prompts_module, "TOKENS_AT_ONCE", 16)
    read: list[int] = []
    right = Batch.skim
    monkeypatch.setattr(Batch, "skim", lambda self, ids: read.append(ids.shape[1]) or right(self, ids))
    engine = driven(speaking_model(letters=False))
    _, first = engine.ask(a_job([5, 6], max_tokens=30, temperature=0.0))
    engine.turn()
    long = [a_job([5 + n] * 50, n=4, max_tokens=2, thought_temperature=float(n)) for n in range(3)]
    others = [engine.ask(job)[1] for job in long]
    read.clear()
    for n in range(2, 12):
        engine.turn()
        assert len(first) == n
        assert sum(read) <= 16
        assert all(others) == (n == 11)
        read.clear()
    engine.finish()
    for job, events in zip(long, others, strict=True):
        check(engine.model, job, events)
    assert engine.metrics.registry.get_sample_value("quietstar_tokens_total", {"kind": "prompt"}) == 2 + 3 * 50


def test_errands_are_run_a_part_a_turn_while_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time; those of disconnected clients are dropped."""
    monkeypatch.setattr(what_if, "TOKENS_AT_ONCE", 16)
    model, ids = speaking_model(letters=False), [5 + n for n in range(60)]
    engine = driven(model)
    _, text = engine.ask(a_job([5, 6], max_tokens=30, temperature=0.0))
    done: list[int] = []

    def errand(n: int) -> Any:
        done.append(n)
        return (yield from what_if.Question(ids, [7, 8]).answer(model, byte_tokenizer()))

    events: list[list] = [[], [], []]
    tickets = [engine.submit(lambda n=n: errand(n), events[n].append) for n in range(3)]
    engine.cancel(tickets[1])
    for n in range(1, 9):
        engine.turn()
        assert len(text) == n
        assert [len(each) for each in events] == [n >= 7, 1, n >= 8]  # in turns
    assert done == [0, 2]
    assert events[1][0].status == 499
    (alone,) = events[0]
    assert isinstance(alone, Returned)
    monkeypatch.setattr(what_if, "TOKENS_AT_ONCE", 1000)
    with pytest.raises(StopIteration) as whole:
        next(what_if.Question(ids, [7, 8]).answer(model, byte_tokenizer()))
    for name in ("base", "thought_alone", "mixed"):
        found, expected = alone.value[name], whole.value.value[name]
        assert [each["id"] for each in found] == [each["id"] for each in expected]
        assert [each["logprob"] for each in found] == pytest.approx([each["logprob"] for each in expected], abs=1e-4)


def test_an_errand_that_fails_fails_alone() -> None:
    """With 500, or with its own RequestError."""
    engine = driven(speaking_model(letters=False))

    def wrong(error: Exception) -> Any:
        yield
        raise error

    events: list = []
    for error in (RuntimeError("out of memory"), RequestError(400, "no")):
        engine.submit(lambda error=error: wrong(error), events.append)
    engine.finish()
    assert [event.status for event in events] == [500, 400]


def test_predictions_are_made_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in steps with a text that requests them."""
    made: list[int] = []
    right = Predictions.three_predictions
    monkeypatch.setattr(Predictions, "three_predictions", lambda self: made.append(len(self.h_base)) or right(self))
    engine = driven(speaking_model(letters=False))
    engine.ask(a_job([9, 8], max_tokens=6, temperature=0.0, wants_thoughts=False))
    engine.turn()
    assert not made
    engine.ask(a_job([9, 7], max_tokens=3, temperature=0.0))
    engine.finish()
    assert made == [2, 2, 2]


def test_a_prediction_that_is_not_finite_fails_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the other requests in the batch."""
    model, right = speaking_model(letters=False), Batch.read

    def wrong(self: Batch, ids: torch.Tensor, *more: Any) -> Any:
        logits, step = right(self, ids, *more)
        if len(logits) == 2:
            logits[1] = float("nan")
        return logits, step

    monkeypatch.setattr(Batch, "read", wrong)
    engine, job = driven(model), a_job([5, 6], max_tokens=9, temperature=1.0)
    _, first = engine.ask(job)
    _, second = engine.ask(a_job([5, 7], max_tokens=9, temperature=1.0))
    engine.finish()
    assert second[-1].status == 500
    check(model, job, first)


def test_a_text_ends_where_the_context_does() -> None:
    """The longest prompt allowed leaves room for one token after a thought."""
    for family in ("llama", "gpt2"):
        engine = driven(speaking_model(family, letters=False))
        assert engine.max_prompt_tokens(engine.n_ahead) == CONTEXT - 4
        assert engine.room(CONTEXT - 4, engine.n_ahead) == 1
        assert (engine.max_prompt_tokens(9), engine.room(CONTEXT - 9, 9)) == (CONTEXT - 9, 1)
        job = a_job([5] * (CONTEXT - 9), max_tokens=engine.room(CONTEXT - 9, engine.n_ahead), temperature=1.0, seed=4)
        _, events = engine.ask(job)
        engine.finish()
        assert len(events) == 6
        check(engine.model, job, events)


def test_special_tokens_are_no_text_and_end_it() -> None:
    """It is reported as a token without text."""
    model = speaking_model(letters=True)
    engine = driven(model)
    _, events = engine.ask(a_job([70, 71], n=8, max_tokens=60, temperature=1.0))
    engine.finish()
    ended = [event for event in events if event.finish_reason == "stop"]
    assert ended
    assert {event.token for event in ended} == {2}
    assert {event.text for event in ended} <= {"", "\N{REPLACEMENT CHARACTER}"}  # an incomplete character before eos
    for choice in range(8):
        written = [event for event in events if event.choice == choice]
        text = byte_tokenizer().decode([event.token for event in written], skip_special_tokens=True)
        assert "".join(event.text for event in written) == text


def test_suppressed_tokens_are_not_written_whatever_the_nucleus() -> None:
    """Suppressed tokens are masked before the policy measures."""
    model = speaking_model(letters=True)
    engine = driven(model)
    _, events = engine.ask(a_job([70, 71], n=4, max_tokens=20, temperature=2.0, top_p=0.05))
    engine.finish()
    assert not {event.token for event in events} & set(model.config.suppressed_token_ids)


def test_stop_strings_end_a_text_and_are_not_returned() -> None:
    """Also across tokens; all tokens of it are reported."""
    engine = driven(speaking_model(letters=True))
    job = a_job([70, 71, 72], max_tokens=20, temperature=0.0)
    _, free = engine.ask(job)
    engine.finish()
    text = "".join(event.text for event in free)
    stop = text[3:6]
    _, stopped = engine.ask(a_job([70, 71, 72], max_tokens=20, temperature=0.0, stop=("never there", stop)))
    engine.finish()
    assert "".join(event.text for event in stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop"
    assert [event.token for event in stopped] == [event.token for event in free][: len(stopped)]


def test_who_comes_first_is_let_in_first() -> None:
    """Small requests do not starve one that needs many rows."""
    engine = driven(speaking_model(letters=False), max_batch=4)
    engine.ask(a_job([5], n=3, max_tokens=9))
    engine.turn()
    large, _ = engine.ask(a_job([5], n=4, max_tokens=2))
    small, _ = engine.ask(a_job([5], max_tokens=2))
    engine.turn()
    assert list(engine.waiting) == [large, small]
    engine.finish()
    assert large.is_over
    assert small.is_over


def test_the_queue_has_an_end() -> None:
    """Further ones get 429 with Retry-After."""
    engine = driven(speaking_model(letters=False), max_batch=2, max_queue=3)
    for _ in range(5):
        engine.ask(a_job([5], max_tokens=2))
    with pytest.raises(RequestError) as raised:
        engine.ask(a_job([5]))
    assert raised.value.status == 429
    assert int(raised.value.headers["Retry-After"]) > 0
    engine.finish()
    engine.ask(a_job([5]))
    engine.finish()


def test_a_cancelled_request_takes_no_further_turn() -> None:
    """In the queue, while its prompt is read, or during generation."""
    engine = driven(speaking_model(letters=False), max_batch=1)
    running, _ = engine.ask(a_job([5], max_tokens=200, temperature=0.0))
    waiting, events = engine.ask(a_job([6], max_tokens=200))
    engine.turn()
    engine.cancel(waiting)
    engine.turn()
    assert [event.status for event in events] == [499]
    engine.cancel(running)
    engine.turn()
    assert (len(engine.running), len(engine.waiting), len(engine.groups)) == (0, 0, 0)


def test_time_runs_out() -> None:
    """For waiting and for running requests."""
    engine = driven(speaking_model(letters=False), max_batch=1, request_seconds=1e-9)
    asked = [engine.ask(a_job([5], max_tokens=200)) for _ in range(2)]
    engine.turn()
    for _, events in asked:
        assert isinstance(events[-1], RequestError)
        assert events[-1].status == 504


def broken_prompt(patch: pytest.MonkeyPatch) -> None:
    """Prompts that begin with 66 fail."""
    right = Batch.skim

    def wrong(self: Batch, ids: torch.Tensor) -> None:
        if int(ids[0, 0]) == 66:
            raise RuntimeError("out of memory")
        right(self, ids)

    patch.setattr(Batch, "skim", wrong)


def broken_join(patch: pytest.MonkeyPatch) -> None:
    """The second text to join fails halfway, and breaks the batch."""
    right = Batch.join

    def wrong(self: Batch, other: Batch) -> None:
        if len(self):
            self.mask = self.mask[:0]
            raise RuntimeError("out of memory")
        right(self, other)

    patch.setattr(Batch, "join", wrong)


@pytest.mark.parametrize(("error", "survives"), [(broken_prompt, True), (broken_join, False)])
def test_a_failure_is_the_failure_of_those_concerned(
    error: Any, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get 500; later requests are served."""
    model = speaking_model(letters=False)
    engine = driven(model)
    with monkeypatch.context() as patch:
        error(patch)
        job = a_job([5, 6], max_tokens=20, temperature=0.0)
        _, first = engine.ask(job)
        engine.turn()
        _, second = engine.ask(a_job([66, 67], max_tokens=20, temperature=0.0))
        engine.finish()
    assert second[-1].status == 500
    assert "memory" not in second[-1].message
    if survives:
        check(model, job, first)
    else:
        assert first[-1].status == 500
    _, third = engine.ask(job)
    engine.finish()
    check(model, job, third)


def test_an_engine_that_stops_ends_what_it_has() -> None:
    """With 503, running or waiting; and it accepts no more."""
    events: list = []
    with running_engine(speaking_model(letters=False), max_batch=1) as engine:
        for _ in range(2):
            engine.submit(a_job([5], max_tokens=10_000, temperature=1.0), events.append)
    assert not engine.is_alive
    assert [event.status for event in events if isinstance(event, RequestError)] == [503, 503]
    for state in ("waiting", "running"):
        found = engine.metrics.registry.get_sample_value("quietstar_requests_in_flight", {"state": state})
        assert found == 0
    assert not any(isinstance(event, Written) for event in events[-1:])
    with pytest.raises(RequestError) as raised:
        engine.submit(a_job([5]), events.append)
    assert raised.value.status == 503
