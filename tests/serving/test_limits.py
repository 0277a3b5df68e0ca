"""Every limit of the server: its status, its message, and that it is checked before any work."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from quietstar.errors import SettingsError
from quietstar.serving import guard
from quietstar.serving.app import make_app
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.guard import Guard, allowed_hosts, name_of
from quietstar.serving.metrics import Metrics
from tests.serving.running import CONTEXT, NAME, DrivenEngine, driven, speaking_model
from tests.tiny_tokenizer import byte_tokenizer

COMPLETION: dict[str, Any] = {"prompt": "one two"}
JSON = {"Content-Type": "application/json"}


def idle(base_url: str = "http://127.0.0.1", **settings: Any) -> tuple[TestClient, DrivenEngine]:
    """Return a client of a server whose engine never runs."""
    engine = driven(speaking_model(), **settings)
    app = make_app(engine, byte_tokenizer(), ServeArguments(**settings), NAME)
    return TestClient(app, base_url=base_url), engine


def refused(client: TestClient, status: int, body: dict[str, Any], path: str = "/v1/completions") -> dict[str, Any]:
    """Return the error."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert len(error["message"].splitlines()) == 1
    return error


def test_a_body_has_a_size() -> None:
    """By its Content-Length, or by what arrives without one; a body of exactly the limit is accepted."""
    client, engine = idle(max_request_bytes=100)

    def body(n: int) -> bytes:
        return json.dumps({"prompt": 5} | {"user": ""}).ljust(n).encode()

    assert client.post("/v1/completions", content=body(100), headers=JSON).status_code == 422
    for content in (body(101), iter([body(50), body(51)]), iter([b"x" * 10_000_000])):
        answer = client.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code == 413
        assert "100 bytes" in answer.json()["error"]["message"]
    assert not engine.waiting


class Sender:
    """An ASGI client that sends a body in parts, and counts how many were read."""

    def __init__(self, parts: Iterator[bytes], headers: dict[str, str], path: str = "/v1/completions") -> None:
        self.parts, self.n_taken, self.sent = parts, 0, []
        names = {"host": "127.0.0.1", "content-type": "application/json"} | headers
        raw = [(name.encode(), value.encode()) for name, value in names.items()]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "query_string": b""}

    async def receive(self) -> dict[str, Any]:
        """Return the next part."""
        self.n_taken += 1
        part = next(self.parts, None)
        if part is None:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(self, message: dict[str, Any]) -> None:
        """Store the response's status."""
        self.sent.append(message)

    def status(self, app: Any) -> int:
        """Send the request, and return the status of the response."""
        asyncio.run(app(self.scope, self.receive, self.send))
        return self.sent[0]["status"]


def guarded(**how: Any) -> Guard:
    """Return the guard of an application that must not be called."""

    async def app(*_: Any) -> None:
        raise AssertionError("it was let through")

    settings = {"endpoints": (), "open_paths": (), "open_folder": "/static/", "api_key": None, "hosts": None}
    return Guard(app, Metrics(), **{**settings, "max_bytes": 1000, **how})


def test_no_more_is_read_than_is_allowed() -> None:
    """An endless body is read up to the limit; one with a Content-Length above it is not read at all."""
    endless = Sender(iter(lambda: b"x" * 100, None), {})
    assert endless.status(guarded()) == 413
    assert endless.n_taken == 11
    honest = Sender(iter([]), {"content-length": "1001"})
    assert honest.status(guarded()) == 413
    assert honest.n_taken == 0
    huge = Sender(iter([]), {"content-length": "9" * 5000})
    assert huge.status(guarded()) == 413


def test_a_body_that_does_not_arrive_times_out() -> None:
    """A client cannot hold a connection by sending nothing."""
    assert Sender(iter([b"{"]), {}).status(guarded(body_seconds=0.01)) == 408


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_only_json_is_taken(kind: str) -> None:
    """Other content types are refused, as web pages of other origins can send them without a preflight request."""
    client, _ = idle()
    answer = client.post("/v1/completions", content=json.dumps(COMPLETION), headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_a_prompt_has_a_length() -> None:
    """The server's limit, or the model's context minus a thought; for text, ids and messages."""
    client, engine = idle()
    for n in (CONTEXT - 3, 10_000):
        for prompt in ("x" * n, [70] * n):
            error = refused(client, 400, {"prompt": prompt})
            assert error["code"] == "context_length_exceeded"
            assert f"{n} tokens; give at most {CONTEXT - 4}" in error["message"]
    assert engine.max_prompt_tokens(engine.n_ahead) == CONTEXT - 4
    client, engine = idle(max_prompt_tokens=5)
    assert "give at most 5" in refused(client, 400, {"prompt": "sixsix"})["message"]
    assert "give at most 5" in refused(client, 400, {"prompt": "sixsix"}, "/v1/thoughts")["message"]
    for prompt in ("", [259], [-1], [10**30]):
        assert refused(client, 400, {"prompt": prompt})["param"] == "prompt"
    for ids in ([], [259]):
        assert refused(client, 400, {"token_ids": ids}, "/v1/thoughts")["param"] == "token_ids"
    assert not engine.waiting


def test_tokens_that_the_model_lacks_are_refused() -> None:
    """A tokenizer may have more tokens than its model; other requests in the batch are not affected."""
    engine, tokenizer = driven(speaking_model()), byte_tokenizer()
    tokenizer.add_tokens(["<eggs>"])
    tokenizer.chat_template = "{{ messages[0].content }}"
    client = TestClient(make_app(engine, tokenizer, ServeArguments(), NAME), base_url="http://127.0.0.1")
    for path, body in (
        ("/v1/completions", {"prompt": "two <eggs>"}),
        ("/v1/thoughts", {"prompt": "two <eggs>"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "two <eggs>"}]}),
    ):
        message = refused(client, 400, body, path)["message"]
        # older versions of transformers cannot sanitize control tokens in messages, which are refused earlier
        assert "token id 259 is out of range; give 0 to 258" in message or "spells out the control token" in message
    assert not engine.waiting


def test_an_output_has_a_length_and_a_number() -> None:
    """A request for more is refused, not cut silently."""
    client, engine = idle(max_tokens=9, max_n=2)
    assert (
        "max_tokens is 10; the server allows up to 9"
        in refused(client, 400, COMPLETION | {"max_tokens": 10})["message"]
    )
    chat = {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 10}
    error = refused(client, 400, chat, "/v1/chat/completions")
    assert error["param"] == "max_completion_tokens"
    assert "n is 3; the server allows up to 2" in refused(client, 400, COMPLETION | {"n": 3})["message"]
    assert "max_tokens is 1000" in refused(client, 422, COMPLETION | {"max_tokens": 10**4000})["message"]
    assert not engine.waiting


def test_the_models_thoughts_have_a_length() -> None:
    """As many tokens as the server allows, or thinks by itself, and as leave room for a prompt."""
    client, engine = idle(max_n_ahead=9)
    for n_ahead in (10, 10**6):
        error = refused(client, 400, COMPLETION | {"n_ahead": n_ahead})
        assert (error["message"], error["param"]) == (f"n_ahead is {n_ahead}; the server allows up to 9", "n_ahead")
    chat = {"messages": [{"role": "user", "content": "x"}], "n_ahead": 10}
    assert "allows up to 9" in refused(client, 400, chat, "/v1/chat/completions")["message"]
    assert f"give at most {CONTEXT - 9}" in refused(client, 400, {"prompt": [70] * 248, "n_ahead": 9})["message"]
    assert "allows up to 64" in refused(idle()[0], 400, COMPLETION | {"n_ahead": 65})["message"]
    assert (
        "allows up to 12" in refused(idle(max_n_ahead=9, n_ahead=12)[0], 400, COMPLETION | {"n_ahead": 13})["message"]
    )
    most = refused(idle(max_n_ahead=1000)[0], 400, COMPLETION | {"n_ahead": CONTEXT})["message"]
    assert f"allows up to {CONTEXT - 1}" in most
    with pytest.raises(SettingsError, match=f"n_ahead is 300, and the model's context {CONTEXT}; give at most 255"):
        idle(n_ahead=300)
    assert not engine.waiting


def test_a_given_thought_has_a_length() -> None:
    """To 64 tokens, and to the context."""
    client, _ = idle()
    error = refused(client, 400, {"prompt": "x", "thought": "y" * 65}, "/v1/thoughts")
    assert "give at most 64" in error["message"]
    long = {"token_ids": [70] * (CONTEXT - 4), "thought_ids": [70] * 3}
    assert f"context is {CONTEXT}" in refused(client, 400, long, "/v1/thoughts")["message"]
    assert refused(client, 400, {"prompt": "x", "thought_ids": [259]}, "/v1/thoughts")["param"] == "thought_ids"


def test_a_key_is_required_if_there_is_one(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For everything but the page, its files and the health check; keys are compared in constant time."""
    compared = []
    right = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or right(a, b))
    (tmp_path / "key").write_text("sesame\n")
    client, _ = idle(api_key_file=str(tmp_path / "key"))
    for given in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "sesame"},
        {"Authorization": "Basic sesame"},
    ):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/models/", "//v1/models", "/statics"):
            answer = client.get(path, headers=given)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/completions", json={}, headers=given).status_code == 401
    assert all(isinstance(a, bytes) and b == b"sesame" for a, b in compared)
    assert len(compared) == 4 * 7
    for path in ("/", "/healthz", "/static/style.css"):
        assert client.get(path).status_code == 200
    answer = client.get("/v1/models", headers={"Authorization": "Bearer é".encode()})
    assert answer.status_code == 401
    for scheme in ("Bearer", "bearer"):
        assert client.get("/v1/models", headers={"Authorization": f"{scheme} sesame"}).status_code == 200
    monkeypatch.setenv("QUIETSTAR_API_KEY", "other")
    assert idle()[0].get("/v1/models").status_code == 401


def test_other_origins_are_refused_by_default() -> None:
    """Browsers keep responses from pages of other origins, except those of `--cors_origin`."""
    asked = {"Origin": "http://example.org", "Access-Control-Request-Method": "POST"}
    client, _ = idle()
    for answer in (client.options("/v1/completions", headers=asked), client.get("/v1/models", headers=asked)):
        assert not any(name.startswith("access-control") for name in answer.headers)
    client, _ = idle(cors_origin=["http://example.org"])
    assert client.options("/v1/completions", headers=asked).headers["access-control-allow-origin"] == asked["Origin"]
    assert client.get("/v1/models", headers=asked).headers["access-control-allow-origin"] == asked["Origin"]
    answer = client.get("/v1/models", headers=asked | {"Origin": "http://example.com"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_loopback_address_is_asked_by_loopback_names_only() -> None:
    """A foreign name that resolves to this machine gets no response."""
    for host in ("evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "localhost.evil.example"):
        client, _ = idle()
        for path in ("/", "/healthz", "/v1/models", "/static/style.css"):
            assert client.get(path, headers={"Host": host}).status_code == 421
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8000", "localhost."):
        assert idle()[0].get("/healthz", headers={"Host": host}).status_code == 200
    assert idle(host="0.0.0.0")[0].get("/healthz", headers={"Host": "any.example"}).status_code == 200
    assert allowed_hosts("127.0.0.2") == {"localhost", "127.0.0.1", "127.0.0.2", "::1"}
    assert allowed_hosts("::") is allowed_hosts("10.0.0.1") is allowed_hosts("example.org") is None
    assert allowed_hosts("127.1") == {"localhost", "127.0.0.1", "127.1", "::1"}
    assert allowed_hosts("::ffff:127.0.0.1") is not None
    assert name_of("[::1]:8000") == "::1"
    for odd in ("[::1", "[::1].evil.example", "127.0.0.1:x@evil.example", "127.0.0.1/", "localhost:80:80"):
        assert name_of(odd) == ""


def test_every_answer_tells_browsers_what_it_may_do() -> None:
    """Pages, files, errors and JSON alike."""
    client, _ = idle()
    for answer in (client.get("/"), client.get("/static/page.js"), client.get("/no"), client.get("/v1/models")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert client.get("/v1/models").headers["cache-control"] == "no-store"
