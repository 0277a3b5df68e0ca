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


RESPONSES = "/v1/responses"


def response_events(client: TestClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a streamed response, which are numbered, and named as their data says."""
    text = client.post(RESPONSES, json=body | {"stream": True}).text
    pairs = [event.split("\n") for event in text.removesuffix("\n\n").split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [name for name, _ in pairs] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_a_response_is_what_a_chat_completion_says(client: TestClient) -> None:
    """The thoughts are a reasoning item before the message; neither is stored."""
    asked = {"input": "hi", "instructions": "x", "temperature": 0.8, "seed": 4, "max_output_tokens": 10}
    body = client.post(RESPONSES, json=asked | {"thoughts": True, "metadata": {"run": "7"}}).json()
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]
    chat = {"messages": messages, "temperature": 0.8, "seed": 4, "max_tokens": 10, "thoughts": True}
    (choice,) = client.post("/v1/chat/completions", json=chat).json()["choices"]
    reasoning, message = body["output"]
    assert (reasoning["type"], message["type"], message["role"]) == ("reasoning", "message", "assistant")
    assert reasoning["content"] == [{"type": "reasoning_text", "text": choice["message"]["reasoning_content"]}]
    (part,) = message["content"]
    assert part["text"] == choice["message"]["content"]
    assert part["thoughts"] == choice["thoughts"]
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == 2 * len(part["thoughts"])
    assert (body["metadata"], body["store"], body["instructions"]) == ({"run": "7"}, False, "x")
    ended = choice["finish_reason"] == "stop"
    assert body["status"] == ("completed" if ended else "incomplete")
    assert body["incomplete_details"] == (None if ended else {"reason": "max_output_tokens"})


@pytest.mark.parametrize(
    "more", [{}, {"thoughts": True, "include": ["message.output_text.logprobs"], "top_logprobs": 2}]
)
@pytest.mark.parametrize("think", ["always", "never", "every:3"])
def test_the_events_of_a_response_add_up_to_it(client: TestClient, think: str, more: dict[str, Any]) -> None:
    """Each item is opened, grows, and is closed as it is in the whole response."""
    asked = {"input": "hi", "temperature": 1.0, "seed": 5, "max_output_tokens": 12, "think": think} | more
    asked["include"] = [*more.get("include", []), "reasoning.encrypted_content"]
    whole = client.post(RESPONSES, json=asked).json()
    events = response_events(client, asked)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    found = events[-1]["response"]
    assert [item["type"] for item in whole["output"]] == {
        "always": ["reasoning", "message"],
        "never": ["message"],
        "every:3": [item["type"] for item in found["output"]],
    }[think]
    for index, (item, expected) in enumerate(zip(found["output"], whole["output"], strict=True)):
        of_item = [event for event in events if event.get("output_index") == index]
        kinds = [event["type"].removeprefix("response.") for event in of_item]
        name = "reasoning_text" if item["type"] == "reasoning" else "output_text"
        assert kinds[:2] == ["output_item.added", "content_part.added"]
        assert set(kinds[2:-3]) <= {f"{name}.delta"}
        assert kinds[-3:] == [f"{name}.done", "content_part.done", "output_item.done"]
        assert "".join(event["delta"] for event in of_item[2:-3]) == expected["content"][0]["text"]
        assert of_item[-3]["text"] == expected["content"][0]["text"]
        assert of_item[-2]["part"] == expected["content"][0] == item["content"][0]
        assert of_item[-1]["item"] == item
        if more and item["type"] == "message":
            part = expected["content"][0]
            assert [each for event in of_item[2:-3] for each in event["logprobs"]] == part["logprobs"]
            assert [each for event in of_item[2:-3] for each in event["thoughts"]] == part["thoughts"]
            assert {len(each["top_logprobs"]) for each in part["logprobs"]} == {2}
    assert found["usage"] == whole["usage"]


def test_a_response_without_reasoning_is_a_message(client: TestClient) -> None:
    """An earlier response may be sent back as it came: its thoughts are not read again."""
    asked = {"input": "hi", "temperature": 0, "max_output_tokens": 5}
    body = client.post(RESPONSES, json=asked | {"include_reasoning": False}).json()
    assert [item["type"] for item in body["output"]] == ["message"]
    first = client.post(RESPONSES, json=asked | {"thoughts": True}).json()
    again = [{"role": "user", "content": "hi"}, *first["output"], {"role": "user", "content": "go on"}]
    said = first["output"][1]["content"][0]["text"]
    messages = [again[0], {"role": "assistant", "content": said}, again[-1]]
    chat = client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0, "max_tokens": 5}).json()
    more = client.post(RESPONSES, json=asked | {"input": again}).json()
    assert more["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert more["output"][1]["content"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_a_response_that_fails_says_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stream as an event."""
    monkeypatch.setattr(Batch, "read", lambda *_: 1 / 0)
    assert client.post(RESPONSES, json={"input": "hi"}).json()["error"]["code"] == "internal_error"
    events = response_events(client, {"input": "hi"})
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "error"]
    assert events[-1]["code"] == "internal_error"


def test_several_prompts_are_answered_in_order(engine: Engine, client: TestClient) -> None:
    """Choices i * n to i * n + n - 1 continue prompt i, as texts or token ids, whole and streamed."""
    prompts = ["one two", "x", TOKENIZER("three")["input_ids"]]
    asked = COMPLETION | {"prompt": prompts, "n": 2, "temperature": 1.0, "seed": 5, "thoughts": True}
    body = client.post("/v1/completions", json=asked).json()
    ids = [TOKENIZER(each)["input_ids"] if isinstance(each, str) else each for each in prompts]
    job = a_job(ids[0], more=ids[1:], n=2, temperature=1.0, seed=5, max_tokens=12)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    for choice in body["choices"]:
        tokens, _ = alone(engine.model, job, choice["index"])
        assert [each["id"] for each in choice["thoughts"]] == tokens
    assert body["prompt_token_ids"] == ids
    assert body["usage"]["prompt_tokens"] == sum(map(len, ids))
    chunks = events_of(client, "/v1/completions", asked)
    for choice in body["choices"]:
        parts = [part for c in chunks for part in c["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]


def test_a_prompt_of_several_that_is_wrong_is_named(engine: Engine) -> None:
    """And there may be so many texts altogether."""
    client = client_of(engine, max_n=4)
    answer = client.post("/v1/completions", json={"prompt": ["a", [5, 10_000]]}).json()["error"]
    assert (answer["param"], answer["message"]) == ("prompt.1", "token id 10000 is out of range; give 0 to 258")
    answer = client.post("/v1/completions", json={"prompt": ["a", "b", "c"], "n": 2}).json()["error"]
    assert answer["message"] == "3 prompts with n 2 are 6 texts; the server allows up to 4 in a request"
    answer = client.post("/v1/completions", json={"prompt": ["a"] * 5}).json()["error"]
    assert answer["message"] == "5 prompts with n 1 are 5 texts; the server allows up to 4 in a request"
    assert client.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2}).status_code == 200


BYTES = {str(byte_tokenizer().convert_tokens_to_ids(byte)): -100 for byte in "Ã©"}
"""a bias against parts of characters"""


def test_logprobs_are_those_of_the_prediction(engine: Engine, client: TestClient) -> None:
    """In the form of each endpoint: the mixed prediction, whatever temperature, penalties and biases make of it."""
    changed = {
        "temperature": 0.7,
        "seed": 3,
        "presence_penalty": 2.0,
        "frequency_penalty": 1.0,
        "logit_bias": BYTES,
    }
    asked = COMPLETION | changed | {"thoughts": True}
    (choice,) = client.post("/v1/completions", json=asked | {"logprobs": 3}).json()["choices"]
    logprobs, ids = choice["logprobs"], [each["id"] for each in choice["thoughts"]]
    for t, likeliest in enumerate(logprobs["top_logprobs"]):
        read = torch.tensor([TOKENIZER("one two")["input_ids"] + ids[:t]])
        with torch.no_grad():
            expected = engine.model(read, think="always", thought_temperature=0.0).logits[0, -1].log_softmax(-1)
        assert logprobs["token_logprobs"][t] == pytest.approx(float(expected[ids[t]]), abs=1e-3)
        top = expected.topk(3).values.tolist()
        assert sorted(likeliest.values(), reverse=True)[:3] == pytest.approx(top, abs=1e-3)
        assert likeliest[logprobs["tokens"][t]] == logprobs["token_logprobs"][t]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token) or offset == len(choice["text"])
    chunks = events_of(client, "/v1/completions", asked | {"logprobs": 3})
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert {name: [entry for each in streamed for entry in each[name]] for name in logprobs} == logprobs
    assert client.post("/v1/completions", json=asked).json()["choices"][0]["logprobs"] is None


def test_logprobs_of_a_chat_have_bytes(client: TestClient) -> None:
    """Joined, those of all tokens but the end are the text's, whatever the tokens are."""
    asked = CHAT | {"logprobs": True, "temperature": 1.0, "seed": 3, "max_tokens": 40, "n": 2}
    for choice in client.post("/v1/chat/completions", json=asked | {"top_logprobs": 2}).json()["choices"]:
        content = choice["logprobs"]["content"]
        assert [len(each["top_logprobs"]) for each in content] == [2] * len(content)
        said = content[:-1] if choice["finish_reason"] == "stop" else content
        text = b"".join(bytes(each["bytes"]) for each in said).decode(errors="replace")
        assert text == choice["message"]["content"]
    (choice, _) = client.post("/v1/chat/completions", json=asked).json()["choices"]
    assert {len(each["top_logprobs"]) for each in choice["logprobs"]["content"]} == {0}


def test_a_bias_decides_what_is_said(client: TestClient) -> None:
    """And an id that the model does not have is named."""
    (token,) = TOKENIZER("q")["input_ids"]
    body = client.post("/v1/completions", json=COMPLETION | {"logit_bias": {str(token): 100}}).json()
    assert set(body["choices"][0]["text"]) == {"q"}
    answer = client.post("/v1/completions", json=COMPLETION | {"logit_bias": {"9999": 1}}).json()["error"]
    assert (answer["param"], answer["message"][:30]) == ("logit_bias", "token id 9999 is out of range;")


def test_penalties_change_what_is_said_again(client: TestClient) -> None:
    """A frequency penalty counts, a presence penalty does not, and neither looks at the prompt."""
    (token,) = TOKENIZER("q")["input_ids"]
    asked = COMPLETION | {"prompt": "qqqqqq", "logit_bias": {str(token): 30}, "max_tokens": 40}

    def n_said(**penalty: float) -> int:
        return client.post("/v1/completions", json=asked | penalty).json()["choices"][0]["text"].count("q")

    assert n_said() == n_said(presence_penalty=2) == 40
    assert 8 <= n_said(frequency_penalty=2) < 25


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


def test_a_question_may_ask_for_a_longer_thought(client: TestClient) -> None:
    """Of the model's own."""
    for n_ahead in (2, 4, 9):
        body = client.post("/v1/thoughts", json={"prompt": "one two", "n_ahead": n_ahead}).json()
        assert len(body["thought"]["ids"]) == n_ahead - 2
    answer = client.post("/v1/thoughts", json={"prompt": "one two", "n_ahead": 65}).json()["error"]
    assert answer["message"] == "n_ahead is 65; the server allows up to 64"


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
