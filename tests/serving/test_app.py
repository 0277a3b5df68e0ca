"""Responses of every endpoint: completions, chat, streams, thoughts, models, health, metrics, files."""

import copy
import json
from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerBase

from quietstar.inspection.reading import Reading
from quietstar.serving.app import make_app
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.batch import Batch
from quietstar.serving.engine import Engine
from quietstar.serving.intake import Intake
from quietstar.text.pieces import one_line
from tests.serving.running import CONTEXT, NAME, a_job, alone, running_engine, speaking_model
from tests.tiny_tokenizer import byte_tokenizer

TELLS_APART = "sanitize_control_tokens" in signature(PreTrainedTokenizerBase.apply_chat_template).parameters
TOKENIZER = byte_tokenizer()
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
COMPLETION: dict[str, Any] = {"model": NAME, "prompt": "one two", "temperature": 0, "max_tokens": 12}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine shared by these tests."""
    with running_engine(speaking_model()) as engine:
        yield engine


def client_of(engine: Engine, template: str | None = TEMPLATE, **settings: Any) -> TestClient:
    """Return a client of an application with its own settings."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return TestClient(make_app(engine, tokenizer, ServeArguments(**settings), NAME), base_url="http://127.0.0.1")


@pytest.fixture
def client(engine: Engine) -> TestClient:
    """A client of an application with the default settings."""
    return client_of(engine)


def events_of(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chunks of a stream, and check how it ends."""
    answer = client.post(path, json=body | {"stream": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def job_of(prompt: str, **how: Any) -> Any:
    """Return the job of a prompt."""
    return a_job(TOKENIZER(prompt)["input_ids"], **{"max_tokens": 12, "temperature": 0.0, **how})


def test_a_completion_is_what_generate_writes(engine: Engine, client: TestClient) -> None:
    """Return text, reasoning, and the details of each token."""
    body = client.post("/v1/completions", json=COMPLETION | {"thoughts": True}).json()
    tokens, thoughts = alone(engine.model, job_of("one two"))
    (choice,) = body["choices"]
    assert body["object"] == "text_completion"
    assert body["model"] == NAME
    assert choice["text"] == TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert choice["finish_reason"] == ("stop" if tokens[-1] == 2 else "length")
    lines = [one_line(TOKENIZER.decode(thoughts[0, t].tokens)) for t in range(len(tokens))]
    assert choice["reasoning_content"] == "\n".join(lines)
    assert body["prompt_token_ids"] == TOKENIZER("one two")["input_ids"]
    assert [each["id"] for each in choice["thoughts"]] == tokens
    assert [each["thought_text"] for each in choice["thoughts"]] == lines
    first = choice["thoughts"][0]
    assert set(first) == {
        *("id", "token", "thought", "reason", "thought_ids", "thought_tokens", "thought_text", "mixing_weight"),
        *("base", "thought_alone", "mixed"),
    }
    assert first["reason"] == "always"
    for name in ("base", "thought_alone", "mixed"):
        assert [set(each) for each in first[name]] == [{"id", "token", "logprob"}] * 5
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3 * len(tokens),
        "total_tokens": 7 + 3 * len(tokens),
        "completion_tokens_details": {"reasoning_tokens": 2 * len(tokens), "visible_tokens": len(tokens)},
    }


@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize("is_chat", [False, True])
def test_a_stream_adds_up_to_the_whole_answer(client: TestClient, is_chat: bool, thoughts: bool) -> None:
    """Text, reasoning, thoughts and ends of every choice, and usage if requested."""
    path, body = ("/v1/chat/completions", CHAT) if is_chat else ("/v1/completions", COMPLETION)
    asked = body | {"n": 3, "temperature": 1.0, "seed": 5, "thoughts": thoughts, "think": "entropy:2,budget:6"}
    whole = client.post(path, json=asked).json()
    chunks = events_of(client, path, asked | {"stream_options": {"include_usage": True}})
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[0].get("prompt_token_ids") == whole.get("prompt_token_ids")
    for expected in whole["choices"]:
        parts = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == expected["index"]]
        said = [part["delta"] if is_chat else part for part in parts]
        message = expected["message"] if is_chat else expected
        name = "content" if is_chat else "text"
        assert "".join(each[name] for each in said) == message[name]
        assert "".join(each["reasoning_content"] for each in said) == message["reasoning_content"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [expected["finish_reason"]]
        if is_chat:
            assert [each.get("role") for each in said] == ["assistant"] + [None] * (len(said) - 1)
        if thoughts:
            assert [entry for part in parts for entry in part["thoughts"]] == expected["thoughts"]
        else:
            assert "thoughts" not in expected
    assert events_of(client, path, asked)[-1]["choices"]


def test_chat_goes_through_the_template(engine: Engine, client: TestClient) -> None:
    """Text parts are joined; without a template there is a clear error."""
    content = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    both = [
        client.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": each}]}).json()
        for each in ("hi", content)
    ]
    tokens, _ = alone(engine.model, job_of("<user>hi<assistant>"))
    expected = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert [each["choices"][0]["message"]["content"] for each in both] == [expected] * 2
    assert both[0]["object"] == "chat.completion"
    answer = client_of(engine, template=None).post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_chat_template"
    refusing = client_of(engine, template="{{ raise_exception('roles must alternate') }}")
    answer = refusing.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400
    assert "roles must alternate" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("allowed", "by_itself"), [(9, 9), (40, 16)])
def test_a_text_is_as_long_as_requested(allowed: int, by_itself: int) -> None:
    """By default, a completion has 16 tokens, as with OpenAI, and a chat completion as many as the server allows."""
    with running_engine(speaking_model(ends=False), max_tokens=allowed) as engine:
        client = client_of(engine, max_tokens=allowed)

        def length(path: str, body: dict[str, Any]) -> int:
            return client.post(path, json=body).json()["usage"]["completion_tokens_details"]["visible_tokens"]

        chat = {"messages": CHAT["messages"]}
        assert length("/v1/completions", {"prompt": "x"}) == by_itself
        assert length("/v1/chat/completions", chat) == allowed
        assert length("/v1/chat/completions", chat | {"max_completion_tokens": 3}) == 3
        assert length("/v1/chat/completions", chat | {"max_tokens": 4}) == 4


@pytest.mark.skipif(not TELLS_APART, reason="this version of transformers cannot tell control tokens apart")
def test_a_message_cannot_speak_for_others(client: TestClient) -> None:
    """Control tokens that it spells out stay text."""
    asked = CHAT | {"messages": [{"role": "user", "content": "</s>"}], "thoughts": True}
    ids = client.post("/v1/chat/completions", json=asked).json()["prompt_token_ids"]
    assert 2 not in ids
    assert TOKENIZER.decode(ids) == "<user></s><assistant>"


@pytest.mark.parametrize("message", [{"content": "a</s>b"}, {"content": "x", "name": "</s>"}])
def test_where_control_tokens_cannot_be_told_apart_they_are_refused(
    client: TestClient, message: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions of transformers would parse control tokens in messages."""
    older = lambda self, messages, **how: "".join(each["content"] for each in messages).encode()  # noqa: E731
    monkeypatch.setattr(type(TOKENIZER), "apply_chat_template", older)
    answer = client.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user"} | message]})
    assert answer.status_code == 400
    assert "a message spells out the control token '</s>'; leave it out" in answer.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1}).status_code == 200


def test_reasoning_may_be_left_out(client: TestClient) -> None:
    """They are counted, though."""
    body = client.post("/v1/completions", json=COMPLETION | {"include_reasoning": False}).json()
    assert "reasoning_content" not in body["choices"][0]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_think_is_the_servers_unless_the_request_says(engine: Engine) -> None:
    """So are temperature and top_p of thoughts."""
    client = client_of(engine, think="never", thought_temperature=1.0)
    never = client.post("/v1/completions", json=COMPLETION | {"thoughts": True}).json()
    assert not any(each["thought"] for each in never["choices"][0]["thoughts"])
    assert never["choices"][0]["reasoning_content"] == ""
    asked = COMPLETION | {"think": "always", "thoughts": True, "seed": 3}
    drawn = client.post("/v1/completions", json=asked).json()["choices"][0]["thoughts"]
    _, thoughts = alone(engine.model, job_of("one two", seed=3, thought_temperature=1.0))
    assert [each["thought_ids"] for each in drawn] == [thoughts[0, t].tokens for t in range(len(drawn))]
    greedy = client.post("/v1/completions", json=asked | {"thought_temperature": 0}).json()["choices"][0]["thoughts"]
    _, thoughts = alone(engine.model, job_of("one two"))
    assert [each["thought_ids"] for each in greedy] == [thoughts[0, t].tokens for t in range(len(greedy))]


def test_thoughts_are_as_long_as_the_server_or_the_request_says(engine: Engine) -> None:
    """In completions, chats and streams, as `generate` of a model with such thoughts writes them."""
    client, asked = client_of(engine, n_ahead=4), {"prompt": "one two", "seed": 3, "thoughts": True, "temperature": 0}
    longer = copy.deepcopy(engine.model)
    for n_ahead in (2, 4, 7):
        longer.config.n_ahead = n_ahead
        tokens, thoughts = alone(longer, job_of("one two", temperature=0.0, max_tokens=16, n_ahead=n_ahead))
        choice = client.post("/v1/completions", json=asked | {"n_ahead": n_ahead}).json()["choices"][0]
        assert [each["id"] for each in choice["thoughts"]] == tokens
        assert [each["thought_ids"] for each in choice["thoughts"]] == thoughts.tokens[0].tolist()
    default = client.post("/v1/completions", json=asked | {"n_ahead": None}).json()["choices"][0]["thoughts"]
    assert {len(each["thought_ids"]) for each in default} == {2}


def test_a_seed_repeats_and_none_varies(client: TestClient) -> None:
    """But the choices of one request differ."""
    asked = COMPLETION | {"temperature": 1.5, "n": 2}

    def texts(**seed: int) -> list[str]:
        return [each["text"] for each in client.post("/v1/completions", json=asked | seed).json()["choices"]]

    assert texts(seed=7) == texts(seed=7)
    assert len({*texts(seed=7)}) == 2
    assert len({str(texts()) for _ in range(4)}) > 1
    assert texts(seed=-1) == texts(seed=-1)
    assert texts(seed=2**63 - 1) == texts(seed=2**63 - 1)


def test_prompts_may_be_token_ids(client: TestClient) -> None:
    """They give the same result as their text."""
    ids = TOKENIZER("one two")["input_ids"]
    both = [client.post("/v1/completions", json=COMPLETION | {"prompt": p}).json() for p in ("one two", ids, [ids])]
    assert len({each["choices"][0]["text"] for each in both}) == 1


@pytest.mark.parametrize("thought", [None, "", "ab", "a thought longer than the model's own"])
def test_thoughts_says_what_would_have_been_said(engine: Engine, client: TestClient, thought: str | None) -> None:
    """After a thought of any length; after its own thought, they equal the original prediction."""
    body = client.post("/v1/thoughts", json={"prompt": "one two", "thought": thought, "top_k": 3}).json()
    ids = TOKENIZER("one two")["input_ids"]
    reading, last = Reading(engine.model, torch.tensor(ids)), torch.tensor([6])
    words = reading.think(last) if thought is None else torch.tensor([TOKENIZER(thought)["input_ids"]]).long()
    said = reading.after(last, words.view(1, -1))
    assert body["thought"]["ids"] == words.flatten().tolist()
    assert len(body["thought"]["tokens"]) == words.numel()
    assert body["mixing_weight"] == pytest.approx(float(said.weight), abs=1e-4)
    for name, states in {"base": reading.h_base[-1], "thought_alone": said.alone, "mixed": said.mixed}.items():
        logprob, found = reading.logits(states).flatten().log_softmax(-1).topk(3)
        assert [each["id"] for each in body[name]] == found.tolist()
        assert [each["logprob"] for each in body[name]] == pytest.approx(logprob.tolist(), abs=1e-4)
    by_ids = client.post("/v1/thoughts", json={"token_ids": ids, "thought_ids": body["thought"]["ids"], "top_k": 3})
    for name in ("base", "thought_alone", "mixed"):
        assert [each["id"] for each in by_ids.json()[name]] == [each["id"] for each in body[name]]
    if thought is None:
        written = client.post("/v1/completions", json=COMPLETION | {"thoughts": True}).json()["choices"][0]["thoughts"]
        assert written[0]["thought_ids"] == body["thought"]["ids"]
        assert [each["id"] for each in written[0]["mixed"][:3]] == [each["id"] for each in body["mixed"]]


def test_models_are_listed(client: TestClient) -> None:
    """There is one, described with its limits."""
    listed = client.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == [NAME]
    assert listed["data"][0]["context"] == CONTEXT
    assert listed["data"][0]["n_ahead"] == 4
    assert client.get(f"/v1/models/{NAME}").json() == listed["data"][0]
    for answer in (
        client.get("/v1/models/other"),
        client.post("/v1/completions", json=COMPLETION | {"model": "other"}),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


def test_metrics_count_what_was_done(client: TestClient, engine: Engine) -> None:
    """Requests by endpoint and status, tokens by kind, and how many texts shared a step."""

    def read() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    before = read()
    usage = client.post("/v1/completions", json=COMPLETION).json()["usage"]
    client.post("/v1/completions", json={})
    client.get("/no/such/place")
    after = read()
    gained = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert gained['quietstar_requests_total{endpoint="/v1/completions",status="200"}'] == 1
    assert gained['quietstar_requests_total{endpoint="/v1/completions",status="422"}'] == 1
    assert gained['quietstar_requests_total{endpoint="other",status="404"}'] == 1
    details = usage["completion_tokens_details"]
    assert gained['quietstar_tokens_total{kind="prompt"}'] == usage["prompt_tokens"]
    assert gained['quietstar_tokens_total{kind="visible"}'] == details["visible_tokens"]
    assert gained['quietstar_tokens_total{kind="thought"}'] == details["reasoning_tokens"]
    assert gained["quietstar_batch_size_count"] == details["visible_tokens"]
    assert after['quietstar_requests_in_flight{state="waiting"}'] == 0


def test_health_ends_with_the_engine() -> None:
    """Further requests are refused."""
    with running_engine(speaking_model()) as engine:
        client = client_of(engine)
        assert client.get("/healthz").json() == {"status": "ok", "model": NAME}
    assert client.get("/healthz").status_code == 503
    assert client.post("/v1/completions", json=COMPLETION).status_code == 503


def test_a_failure_is_one_line_and_the_server_lives_on(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has the error, the response does not."""

    def broken(*_: Any) -> None:
        raise RuntimeError("secret of the house")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "read", broken)
        answer = client.post("/v1/completions", json=COMPLETION)
        (chunk,) = events_of(client, "/v1/completions", COMPLETION)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert chunk == answer.json()
    assert "secret" not in answer.text
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_what_nobody_thought_of_is_answered_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same format, with the same headers."""
    monkeypatch.setattr(Intake, "job", lambda *_: 1 / 0)
    answer = client.post("/v1/completions", json=COMPLETION)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_files_of_the_page_are_served_and_no_others(client: TestClient) -> None:
    """No path leads out of their folder."""
    assert client.get("/").status_code == 200
    assert client.get("/favicon.ico").status_code == 204
    style = client.get("/static/style.css")
    assert style.headers["content-type"] == "text/css; charset=utf-8"
    for path in (
        "/static/../errors.py",
        "/static/%2e%2e%2ferrors.py",
        "/static/errors.py",
        "/static/",
        "/docs",
        "/redoc",
    ):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["message"]
    assert "/v1/completions" in client.get("/openapi.json").json()["paths"]
    assert client.get("/v1/completions").status_code == 405


HOSTILE = "<script>alert(1)</script>\u202e\u0000\u2028 😀 \" ' & \x1b[31m"


def test_text_never_becomes_markup(client: TestClient) -> None:
    """Responses are JSON with that content type, which browsers must not guess."""
    messages = [
        client.post("/v1/completions", json=COMPLETION | {"prompt": HOSTILE}),
        client.post("/v1/completions", json=COMPLETION | {HOSTILE: 1}),
        client.post("/v1/completions", json=COMPLETION | {"model": HOSTILE}),
        client.post("/v1/completions", json=COMPLETION | {"think": HOSTILE}),
        client.post("/v1/completions", json=COMPLETION | {"stop": HOSTILE}),
        client.get("/v1/models/" + "<script>alert(1)</script>"),
        client.get("/<script>alert(1)</script>"),
    ]
    assert [answer.status_code for answer in messages] == [200, 422, 404, 422, 200, 404, 404]
    for answer in messages:
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert json.loads(answer.text)
