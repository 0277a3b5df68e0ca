"""Fields of requests: everything invalid is refused with 422, and one line that names the field."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from quietstar.serving.app import make_app
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.problems import Fault
from quietstar.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponsesRequest,
    ThoughtRequest,
    supported,
)
from tests.serving.running import driven, speaking_model
from tests.tiny_tokenizer import byte_tokenizer

COMPLETION, CHAT, THOUGHTS = "/v1/completions", "/v1/chat/completions", "/v1/thoughts"
RESPONSES = "/v1/responses"
GOOD: dict[str, dict[str, Any]] = {
    COMPLETION: {"prompt": "x"},
    CHAT: {"messages": [{"role": "user", "content": "x"}]},
    THOUGHTS: {"prompt": "x"},
    RESPONSES: {"input": "x"},
}
KINDS: dict[str, type[GenerationRequest]] = {
    COMPLETION: CompletionRequest,
    CHAT: ChatRequest,
    RESPONSES: ResponsesRequest,
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A client of a server whose engine never runs: refused requests do not reach it."""
    engine = driven(speaking_model())
    app = make_app(engine, byte_tokenizer(), ServeArguments())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client
    assert not engine.waiting


def refused(client: TestClient, path: str, body: Any, status: int = 422) -> dict[str, Any]:
    """Return the error, after checking that it has OpenAI's format and one line."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(error["message"].splitlines()) == 1
    assert len(error["message"]) < 600
    return error


WRONG: dict[str, list[Any]] = {
    "model": [1, ["tiny"]],
    "max_tokens": ["5", 5.5, True, 0, -1, [5], "\ud800"],
    "max_output_tokens": ["5", 0],
    "frequency_penalty": ["0", 2.1, -3, True, float("nan")],
    "presence_penalty": ["0", 2.1, -3, True, [0]],
    "logit_bias": [[], {"a": 1}, {"-1": 1}, {"5": "1"}, {"5": 101}, {"5": True}, {"5": float("nan")}, {"5": None}],
    "top_logprobs": [21, -1, "5", True],
    "include": [["file_search_call.results"], "x", [5]],
    "instructions": [5, "\ud800"],
    "temperature": ["1", True, -0.1, 2.1, [1], float("nan"), float("inf")],
    "top_p": ["1", False, 0, 1.1, -1, float("nan")],
    "n": ["1", 0, -3, 1.5, True],
    "stop": [[""], ["a"] * 5, 3, ["a", 1], {"a": 1}, "a" * 501, "\ud800"],
    "seed": ["1", 1.5, True, 2**63, -(2**63) - 1, 10**400],
    "stream": ["true", 1, 0],
    "stream_options": [{"include_usage": "yes"}, {"other": True}, True, {"include_usage": True}],
    "user": [5],
    "think": [5, "sometimes", "entropy", "entropy:x", "every:0", "", "always," * 100, ["always"]],
    "thought_temperature": ["0", -1, 3, float("nan")],
    "thought_top_p": [0, 2, "1"],
    "n_ahead": [0, 1, -3, 2.5, "8", True, [4], 2**31],
    "include_reasoning": ["yes", 1],
    "thoughts": ["yes", 1, {}],
}


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, kind in KINDS.items() for name in WRONG if name in kind.model_fields]
)
def test_wrong_types_and_ranges_are_refused(client: TestClient, path: str, name: str) -> None:
    """Nothing is converted: "1" is not accepted for 1, nor true for 1."""
    for value in WRONG[name]:
        error = refused(client, path, GOOD[path] | {name: value})
        assert name in f"{error['param']} {error['message']}", error


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (COMPLETION, {}, "prompt is missing"),
        (COMPLETION, {"prompt": None}, "prompt is null"),
        (COMPLETION, {"prompt": 5}, "give a text, a list of token ids"),
        (COMPLETION, {"prompt": []}, "give a text, a list of token ids"),
        (COMPLETION, {"prompt": [1, "a"]}, "give a text, a list of token ids"),
        (COMPLETION, {"prompt": [True]}, "give a text, a list of token ids"),
        (COMPLETION, {"prompt": ["a", 5]}, "give a text, a list of token ids, or a list of texts or of such lists"),
        (COMPLETION, {"prompt": ["a", [True]]}, "give a text, a list of token ids"),
        (COMPLETION, {"prompt": "x", "logprobs": 21}, "logprobs is 21"),
        (COMPLETION, {"prompt": "x", "logprobs": True}, "logprobs is true"),
        (COMPLETION, {"prompt": "x", "logit_bias": {"5": 101}}, "give token 5 a number from -100 to 100"),
        (
            COMPLETION,
            {"prompt": "x", "logit_bias": {str(n): 1 for n in range(301)}},
            "an object of up to 300 token ids",
        ),
        (CHAT, GOOD[CHAT] | {"logprobs": 5}, "logprobs is 5"),
        (CHAT, GOOD[CHAT] | {"top_logprobs": 5}, "top_logprobs needs logprobs"),
        (RESPONSES, {"input": "x", "top_logprobs": 5}, "top_logprobs needs include"),
        (COMPLETION, {"prompt": "x", "logit_bias": {"5": 1, "05": 2}}, "a token id is given twice"),
        (RESPONSES, {"input": [{"role": "user", "content": "x", "\ud800": 1}]}, "unknown field '\\ud800'"),
        (
            RESPONSES,
            {"input": "x", "stream": True, "stream_options": {"include_usage": True}},
            "unknown field include_usage",
        ),
        (RESPONSES, {}, "input is missing"),
        (RESPONSES, {"input": []}, "give a text, or a list of messages"),
        (RESPONSES, {"input": 5}, "give a text, or a list of messages"),
        (RESPONSES, {"input": ["x"]}, "other items are not supported"),
        (RESPONSES, {"input": [{"type": "function_call", "name": "f"}]}, "other items are not supported"),
        (RESPONSES, {"input": [{"type": "reasoning", "content": []}]}, "there is no message; give one"),
        (RESPONSES, {"input": [{"role": "robot", "content": "x"}]}, "give each message a role: system, developer"),
        (RESPONSES, {"input": [{"role": "user"}]}, "give each message content"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "give each message content"),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": "x", "name": "y"}]},
            "a message has the unknown field 'name'",
        ),
        (RESPONSES, {"input": "\ud800"}, "lone surrogate"),
        (COMPLETION, {"prompt": "\ud800"}, "lone surrogate"),
        (CHAT, {}, "messages is missing"),
        (CHAT, {"messages": []}, "messages is a list of 0"),
        (CHAT, {"messages": "hi"}, "messages is 'hi'"),
        (CHAT, {"messages": ["hi"]}, "messages.0 is 'hi'"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role is 'robot'"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content is 5"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "give a text"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "tool_calls is a list of 1: not supported",
        ),
        (CHAT, {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "give null, or leave it out"),
        (THOUGHTS, {}, "give either prompt or token_ids"),
        (THOUGHTS, {"prompt": "x", "token_ids": [1]}, "give either prompt or token_ids"),
        (THOUGHTS, {"token_ids": [True]}, "give a list of token ids"),
        (
            THOUGHTS,
            {"prompt": "x", "thought": "a", "thought_ids": [5]},
            "thought and thought_ids were given; give one, or none",
        ),
        (THOUGHTS, {"prompt": "x", "thought": "a", "n_ahead": 5}, "thought and n_ahead were given; give one"),
        (THOUGHTS, {"prompt": "x", "n_ahead": 1}, "n_ahead is 1"),
        (RESPONSES, {"input": "x", "stop": "a"}, "unknown field stop"),
        (THOUGHTS, {"prompt": "x", "top_k": 51}, "top_k is 51"),
        (THOUGHTS, {"prompt": "x", "think": "always"}, "unknown field think"),
        (COMPLETION, [], "not a JSON object"),
        (COMPLETION, "x", "not a JSON object"),
        (COMPLETION, None, "not a JSON object"),
        (COMPLETION, {"prompt": "x", "\ud800": 1}, "lone surrogate"),
        (COMPLETION, {"prompt": "x", "a\nb" * 999: 1}, "unknown field "),
    ],
)
def test_invalid_requests_are_refused(client: TestClient, path: str, body: Any, says: str) -> None:
    """The prompt, the messages, and fields that contradict each other."""
    assert says in refused(client, path, body)["message"]


@pytest.mark.parametrize(
    ("path", "name"),
    [(THOUGHTS, "logprobs"), (THOUGHTS, "tools"), (COMPLETION, "tools"), (CHAT, "suffix"), (RESPONSES, "echo")],
)
def test_fields_that_are_not_known_are_named(client: TestClient, path: str, name: str) -> None:
    """The error lists the allowed ones."""
    error = refused(client, path, GOOD[path] | {name: None})
    assert error["param"] == name
    assert error["message"].startswith(f"unknown field {name}; allowed are ")
    assert "verbosity" not in error["message"]


NEUTRAL: dict[str, tuple[list[Any], list[Any]]] = {
    "repetition_penalty": ([1, 1.0], [1.2, 0, True]),
    "min_p": ([0, 0.0], [0.1, False]),
    "top_k": ([0, -1], [50, 1]),
    "best_of": ([1], [2, 0, True]),
    "echo": ([False], [True, 0]),
    "suffix": ([""], ["x"]),
    "audio": ([], [{"voice": "x", "format": "wav"}]),
    "function_call": (["none", "auto"], [{"name": "f"}]),
    "functions": ([[]], [[{"name": "f"}]]),
    "metadata": ([{}, {"run": "7"}], [{"run": 7}, "x", {"\ud800": "x"}, {"x": "\ud800"}]),
    "modalities": ([["text"]], [["text", "audio"], ["audio"]]),
    "moderation": ([], [{"model": "x"}]),
    "parallel_tool_calls": ([True, False], [1]),
    "prediction": ([], [{"type": "content", "content": "x"}]),
    "prompt_cache_key": (["x"], [5]),
    "prompt_cache_options": ([{"mode": "implicit"}], [{"mode": "explicit"}]),
    "prompt_cache_retention": (["in_memory"], ["24h"]),
    "reasoning_effort": ([], ["none", "medium", "high"]),
    "response_format": ([{"type": "text"}], [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}]),
    "safety_identifier": (["x"], [5]),
    "service_tier": (["auto", "default"], ["flex"]),
    "store": ([False], [True]),
    "tool_choice": (["none", "auto"], ["required", {"type": "function"}]),
    "tools": ([[]], [[{"type": "function"}]]),
    "background": ([False], [True]),
    "context_management": ([[]], [[{"type": "compaction"}]]),
    "conversation": ([], ["conv_1"]),
    "max_tool_calls": ([], [3]),
    "previous_response_id": ([], ["resp_1"]),
    "prompt": ([], [{"id": "x"}]),
    "reasoning": ([{}, {"effort": None, "summary": None, "mode": None}], [{"effort": "high"}, {"summary": "auto"}]),
    "text": (
        [{}, {"format": {"type": "text"}, "verbosity": None}, {"verbosity": "medium"}],
        [{"format": {"type": "json_object"}}, {"verbosity": "low"}],
    ),
    "truncation": (["disabled"], ["auto"]),
    "verbosity": (["medium"], ["low"]),
    "web_search_options": ([], [{}]),
}
"""field -> values without effect, values with an effect"""


def neutral(path: str) -> set[str]:
    """Return the unsupported fields of a path's requests."""
    return set(KINDS[path].model_fields) - set(supported(KINDS[path]))


@pytest.mark.parametrize(("path", "name"), [(path, name) for path in KINDS for name in sorted(neutral(path))])
def test_values_that_ask_for_nothing_are_accepted(client: TestClient, path: str, name: str) -> None:
    """The same fields with other values are refused, each with one line that tells what to give."""
    kind = KINDS[path]
    nothing, something = NEUTRAL[name]
    for value in [None, *nothing]:
        request = kind.model_validate(GOOD[path] | {name: value})
        assert request.model_copy(update={name: None}) == kind.model_validate(GOOD[path])
    for value in something:
        error = refused(client, path, GOOD[path] | {name: value})
        assert name in error["message"]


@pytest.mark.parametrize("path", [COMPLETION, CHAT])
def test_supported_fields_ask_for_nothing_by_their_value_too(path: str) -> None:
    """An empty text does not end an answer, and null does not request usage."""
    nothing = {"stop": "", "stream": False, "stream_options": {"include_usage": False}}
    request = KINDS[path].model_validate(GOOD[path] | nothing)
    assert isinstance(request, CompletionRequest | ChatRequest)
    assert (request.stop, request.wants_usage) == ((), False)


def test_a_neutral_field_of_one_request_is_named_where_another_has_it(client: TestClient) -> None:
    assert "did you mean top_k?" in refused(client, THOUGHTS, {"prompt": "x", "top_kk": 5})["message"]


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    """With its thoughts, which are not read again, and the fields that OpenAI's client leaves empty."""
    own = {"role": "assistant", "content": "yes", "reasoning_content": "12+12"}
    own |= dict.fromkeys(["refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id"])
    assert ChatRequest.model_validate({"messages": [own]}).for_template == [{"role": "assistant", "content": "yes"}]


def test_a_misspelt_field_is_guessed(client: TestClient) -> None:
    """As for options of the command."""
    assert "did you mean temperature?" in refused(client, COMPLETION, {"prompt": "x", "temprature": 1})["message"]


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b'{"prompt": 1' + b"0" * 5000 + b"}"])
def test_bodies_that_are_not_json_are_refused(client: TestClient, path: str, body: bytes) -> None:
    """Malformed, not UTF-8, too deep, or with numbers that are too long."""
    refused(client, path, body, status=400 if body else 422)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "the body is not valid JSON: Expecting property name"),
        (b"\xff\xfe", 400, "byte 1 of the body is not UTF-8; send JSON in UTF-8"),
        ('{"prompt": "x"}'.encode("utf-16"), 400, "byte 1 of the body is not UTF-8"),
        (b"[" * 100_000, 400, "is nested too deeply; send fewer levels of lists and objects"),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", 400, "has a number of too many digits; send a shorter one"),
        (b'{"prompt": "x", "seed": 1, "seed": 2}', 422, "'seed' is given twice; give it once"),
        (b'{"messages": [{"role": "user", "role": "system"}]}', 422, "'role' is given twice"),
        (b'{"": 1, "": 2}', 422, "'' is given twice"),
        (b"{" + b",".join(b'"a%d":0' % n for n in range(60_000)) + b',"a0":0}', 422, "'a0' is given twice"),
        (b"[" * 964 + b"]" * 964, 400, "is nested too deeply"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_what_is_wrong(
    client: TestClient, body: bytes, status: int, says: str
) -> None:
    """And does not just report that something is wrong."""
    for path in GOOD:
        assert says in refused(client, path, body, status=status)["message"]
    answer = client.post(
        COMPLETION, content=b"x", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415
    assert "Content-Encoding" in answer.json()["error"]["message"]


def test_every_error_is_described(client: TestClient) -> None:
    """It describes our errors, not the framework's."""
    described = client.get("/openapi.json").json()
    for path in GOOD:
        schema = described["paths"][path]["post"]["responses"]["422"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Fault"}
    Fault.model_validate(client.post(COMPLETION, json={}).json())
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_an_address_that_is_nearly_right_is_wrong(client: TestClient) -> None:
    """There are no redirects, and health checks may use HEAD."""
    answer = client.post(COMPLETION + "/", json={"prompt": "x"}, follow_redirects=False)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    assert client.head("/healthz").status_code == client.head("/").status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


CONVERTED = ("stop", "think", "prompt", "input", "logit_bias")


@given(path=st.sampled_from(list(GOOD)), name=st.text(max_size=8) | st.sampled_from(list(WRONG)), value=json_values)
def test_no_value_is_more_than_the_models_can_say(path: str, name: str, value: Any) -> None:
    """Pydantic parses or refuses any body, and raises nothing else."""
    kind = {**KINDS, THOUGHTS: ThoughtRequest}[path]
    try:
        request = kind.model_validate(GOOD[path] | {name: value})
    except ValueError:
        return
    assert name in kind.model_fields
    assert request.model_dump(exclude_unset=True)[name] == value or value is None or name in CONVERTED


def test_null_is_as_good_as_nothing() -> None:
    """Clients send null to use the server's default."""
    names = set(CompletionRequest.model_fields) - {"prompt"}
    nothing = CompletionRequest.model_validate({"prompt": "x"} | dict.fromkeys(names))
    assert nothing == CompletionRequest.model_validate({"prompt": "x"})
    assert nothing.requested_tokens == (None, "max_tokens")
