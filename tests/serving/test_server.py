"""A real server on a real port: OpenAI's client, many clients at once, clients that disconnect, and shutdown."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from quietstar.errors import SettingsError
from quietstar.serving import run
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.batch import Batch
from quietstar.serving.guard import Guard
from quietstar.serving.run import Server, listen
from tests.serving import running
from tests.serving.running import CONTEXT, NAME, a_job, alone, served, speaking_model
from tests.serving.test_app import TEMPLATE
from tests.tiny_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
PROMPT = "one two"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Server]]:
    """A server shared by these tests, with the default limits."""
    with served(speaking_model(), chat_template=TEMPLATE) as found:
        yield found


@pytest.fixture
def client(server: tuple[str, Server]) -> Iterator[openai.OpenAI]:
    """OpenAI's client, unmodified."""
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is read or written before it is opened."""
    opened, right = threading.Event(), Batch.read

    def waiting(self: Batch, *args: Any) -> Any:
        assert opened.wait(60)
        return right(self, *args)

    monkeypatch.setattr(Batch, "read", waiting)
    yield opened
    opened.set()


def eventually(what: Any) -> None:
    """Wait until a condition holds."""
    for _ in range(3000):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about")


def text_alone(prompt: str, **how: Any) -> str:
    """Return what `generate` writes after a prompt."""
    job = a_job(TOKENIZER(prompt)["input_ids"], **how)
    return TOKENIZER.decode(alone(speaking_model(), job)[0], skip_special_tokens=True)


def test_completions(client: openai.OpenAI) -> None:
    """Whole and streamed, with our additional fields."""
    how: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**how, extra_body={"thoughts": True, "think": "every:2"})
    assert whole.choices[0].text == text_alone(PROMPT, think="every:2", max_tokens=12, temperature=0.0)
    assert whole.choices[0].reasoning_content
    assert len(whole.choices[0].thoughts) == whole.usage.completion_tokens_details.visible_tokens
    chunks = list(client.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == text_alone(PROMPT, max_tokens=12, temperature=0.0)
    usage = chunks[-1].usage
    assert usage.completion_tokens_details.reasoning_tokens == 2 * usage.completion_tokens_details.visible_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chat_completions(client: openai.OpenAI) -> None:
    """Whole and streamed, with thoughts in the field that reasoning models use."""
    how: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}],
        "temperature": 0.8,
        "seed": 4,
        "max_completion_tokens": 10,
        "stop": ["zz"],
    }
    whole = client.chat.completions.create(**how, n=2)
    assert [choice.index for choice in whole.choices] == [0, 1]
    message = whole.choices[0].message
    assert message.role == "assistant"
    assert message.content == text_alone("<system>x<user>hi<assistant>", max_tokens=10, temperature=0.8, seed=4)
    parts = [chunk.choices[0].delta for chunk in client.chat.completions.create(**how, stream=True)]
    assert "".join(part.content for part in parts) == message.content
    assert "".join(part.reasoning_content for part in parts) == message.reasoning_content


def test_what_is_answered_has_the_clients_types(client: openai.OpenAI) -> None:
    """All fields of each, strictly: the client itself takes anything."""
    how: dict[str, Any] = {"model": NAME, "seed": 4, "temperature": 1.0, "extra_body": {"thoughts": True}}
    text, chat = (
        how | {"prompt": ["one two", "x"], "logprobs": 2},
        how | {"messages": [{"role": "user", "content": "hi"}]},
    )
    chat |= {"logprobs": True, "top_logprobs": 2, "max_tokens": 9}
    respond = how | {
        "input": "hi",
        "max_output_tokens": 9,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    respond["extra_body"] = {"thoughts": True, "seed": respond.pop("seed")}
    chunks = list(client.completions.create(**text, stream=True))
    for chunk in chunks[:-1]:
        for choice in chunk.choices:  # null until the end, as OpenAI's own, which the client's type does not know
            choice.finish_reason = choice.finish_reason or "stop"
    found = [client.completions.create(**text), *chunks]
    found += [client.chat.completions.create(**chat), *client.chat.completions.create(**chat, stream=True)]
    found += [client.responses.create(**respond), *client.responses.create(**respond, stream=True)]
    for each in found:
        type(each).model_validate(each.model_dump(warnings=False), strict=True)


def test_responses(client: openai.OpenAI) -> None:
    """Whole, and by the client's own accumulation of a stream."""
    how: dict[str, Any] = {"model": NAME, "input": "hi", "temperature": 0, "max_output_tokens": 10}
    whole = client.responses.create(**how)
    assert whole.output_text == text_alone("<user>hi<assistant>", max_tokens=10, temperature=0.0)
    with client.responses.stream(**how) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        if whole.status == "completed":
            assert stream.get_final_response().output_text == whole.output_text
    assert "".join(deltas) == whole.output_text
    assert [item.type for item in whole.output] == ["reasoning", "message"]


def test_models(client: openai.OpenAI) -> None:
    """Listed, and by name."""
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    """Each status raises the client's exception for it, with our message."""
    how: dict[str, Any] = {"model": NAME, "prompt": PROMPT}
    with pytest.raises(openai.BadRequestError, match=r"give at most 252") as raised:
        client.completions.create(model=NAME, prompt="x" * 10_000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.UnprocessableEntityError, match="logprobs is 21: input should be") as refused:
        client.completions.create(**how, logprobs=21)
    assert refused.value.param == "logprobs"
    with pytest.raises(openai.UnprocessableEntityError, match=r"temperature is 3"):
        client.completions.create(**how, temperature=3)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=NAME, prompt="x" * 2**20)
    assert large.value.status_code == 413


def test_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key comes from the environment."""
    monkeypatch.setenv("QUIETSTAR_API_KEY", "sesame")
    with served(speaking_model()) as (address, _):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0).models.list().data


def test_thirty_two_clients_get_what_each_would_get_alone(server: tuple[str, Server]) -> None:
    """Greedy and sampled, streamed and whole, of different lengths; and they share forward passes."""
    address, running = server
    asked = [
        {
            "prompt": PROMPT * (1 + n % 5) + str(n),
            "max_tokens": 5 + n % 20,
            "temperature": [0.0, 1.0, 0.6][n % 3],
            "seed": n,
            "think": ["always", "entropy:2,budget:4"][n // 16],
            "stream": n % 4 == 0,
        }
        for n in range(32)
    ]
    start = threading.Barrier(32)

    def ask(body: dict[str, Any]) -> str:
        start.wait(60)
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200
        if not body["stream"]:
            return answer.json()["choices"][0]["text"]
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines)

    n_steps = running.engine.metrics.registry.get_sample_value("quietstar_batch_size_count")
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, asked))
    for body, text in zip(asked, found, strict=True):
        body.pop("stream")
        assert text == text_alone(**body), body
    steps = running.engine.metrics.registry.get_sample_value("quietstar_batch_size_count") - n_steps
    assert steps < sum(body["max_tokens"] for body in asked) / 2


def test_a_full_queue_is_said_so(gate: threading.Event) -> None:
    """With 429 and Retry-After, which OpenAI's client obeys."""
    with served(speaking_model(), max_batch=1, max_queue=1) as (address, server):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with ThreadPoolExecutor(2) as pool:
            others = []
            for n in range(2):
                others.append(pool.submit(client.completions.create, model=NAME, prompt=PROMPT))
                eventually(lambda n=n: len(server.engine.running) + len(server.engine.waiting) == n + 1)
            eventually(lambda: server.engine.running)
            with pytest.raises(openai.RateLimitError) as raised:
                client.completions.create(model=NAME, prompt=PROMPT)
            assert int(raised.value.response.headers["retry-after"]) > 0
            gate.set()
            assert all(other.result(60).choices[0].finish_reason for other in others)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(
    server: tuple[str, Server], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed or not, the next token is the last."""
    right = Batch.read
    slow = lambda self, *args: (time.sleep(0.02), right(self, *args))[1]  # noqa: E731
    monkeypatch.setattr(Batch, "read", slow)
    address, running = server
    engine = running.engine
    eventually(lambda: not engine.running)
    body = {"prompt": PROMPT, "n": 8, "max_tokens": CONTEXT - 20, "temperature": 0.1, "stream": stream}
    with httpx.Client(timeout=60) as client:
        request = client.build_request("POST", f"{address}/v1/completions", json=body)
        if stream:
            answer = client.send(request, stream=True)
            next(answer.iter_lines())
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{address}/v1/completions", json=body, timeout=0.3)
        n = engine.metrics.registry.get_sample_value("quietstar_tokens_total", {"kind": "visible"})
        eventually(lambda: not engine.running)
    written = engine.metrics.registry.get_sample_value("quietstar_tokens_total", {"kind": "visible"}) - n
    assert written < 8 * (CONTEXT - 20) / 2


def test_time_runs_out(gate: threading.Event) -> None:
    """With 504 if nothing has been sent, with an event in a stream."""
    with served(speaking_model(), request_seconds=0.5) as (address, server):

        def ask(stream: bool) -> httpx.Response:
            body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "stream": stream}
            return httpx.post(f"{address}/v1/completions", json=body, timeout=60)

        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(ask, stream) for stream in (False, True)]
            eventually(lambda: len(server.engine.running) + len(server.engine.waiting) == 2)
            time.sleep(0.6)
            gate.set()
            whole, streamed = (each.result(60) for each in both)
        assert whole.status_code == 504
        assert whole.json()["error"]["code"] == "timeout"
        lines = streamed.text.split("\n\n")
        assert json.loads(lines[-3].removeprefix("data: "))["error"]["code"] == "timeout"
        assert lines[-2] == "data: [DONE]"


def test_running_streams_end_when_the_server_does(gate: threading.Event) -> None:
    """Streams end with an error event, not in the middle of a line; then nobody is served."""
    with served(speaking_model()) as (address, server):
        body = {"prompt": PROMPT, "max_tokens": CONTEXT - 20, "temperature": 0, "stream": True}
        with ThreadPoolExecutor(1) as pool:
            streamed = pool.submit(httpx.post, f"{address}/v1/completions", json=body, timeout=60)
            eventually(lambda: server.engine.running)
            server.should_exit = True
            eventually(lambda: server.engine._stops)
            gate.set()
            lines = streamed.result(60).text.split("\n\n")
    assert json.loads(lines[-3].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert lines[-2] == "data: [DONE]"
    assert not server.engine.is_alive
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


@pytest.mark.parametrize("sent", [b"\x00\xff\n\n", b"GET / HTTP/1.1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n" * 3])
def test_invalid_http_is_refused(server: tuple[str, Server], sent: bytes) -> None:
    """It is refused, and other clients are served."""
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(sent + b"\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{server[0]}/healthz").json()["status"] == "ok"


POST = (
    "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
    "Content-Length: {length}\r\nAuthorization: Bearer x\r\n\r\n"
)


def connected(address: str) -> socket.socket:
    """Return a raw connection with a small receive buffer."""
    host, port = address.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(20)
    raw.connect((host, int(port)))
    return raw


def sent_until_closed(address: str, head: str, part: bytes) -> tuple[bytes, int]:
    """Send a body without end; return the response, and how many bytes could be sent."""
    n_sent = 0
    with connected(address) as raw:
        raw.sendall(head.encode())
        answer = raw.recv(100_000)
        try:
            for _ in range(20_000):
                n_sent += raw.send(part)
        except OSError:
            return answer, n_sent
    raise AssertionError("the connection goes on")


@pytest.mark.parametrize(("kind", "status"), [("application/json", 413), ("text/plain", 415)])
def test_a_refused_body_is_not_read_to_its_end(server: tuple[str, Server], kind: str, status: int) -> None:
    """The server responds and closes the connection, however much the client sends."""
    head = POST.format(kind=kind, length=10**12)
    answer, n_sent = sent_until_closed(server[0], head, b"x" * 2**20)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in answer.lower()
    assert n_sent < 2**26  # what the server reads, and network buffers
    answer = httpx.post(f"{server[0]}/v1/completions", content=b"x" * 2**22, headers={"Content-Type": kind})
    assert answer.status_code == status  # a client that sends more than is read still gets its response


def test_a_body_that_trickles_in_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets a response after a timeout, and is closed."""
    monkeypatch.setitem(Guard.__init__.__kwdefaults__, "body_seconds", 0.3)
    with served(speaking_model()) as (address, _), connected(address) as raw:
        raw.sendall(POST.format(kind="application/json", length=10**6).encode())
        raw.settimeout(0.05)
        began, answer, part = time.monotonic(), b"", b"-"
        while part and time.monotonic() - began < 20:
            try:
                raw.send(b" ")
                part = raw.recv(10_000)
                answer += part
            except TimeoutError:
                continue
            except OSError:
                break
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 20


def test_a_body_that_is_read_leaves_the_connection_open(server: tuple[str, Server]) -> None:
    """Also if the request in it is refused."""
    with httpx.Client(base_url=server[0]) as client:
        for body, status in ((b"{", 400), (b'{"prompt": 1}', 422), (b'{"prompt": "x", "max_tokens": 1}', 200)):
            answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == status
            assert "connection" not in answer.headers
        assert client.request("GET", "/healthz", content=b"x").headers["connection"] == "close"


def narrow(host: str, port: int) -> socket.socket:
    """Return a listening socket with a small send buffer."""
    door = listen(host, port)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return door


LONG = {"prompt": PROMPT, "n": 8, "max_tokens": CONTEXT - 20, "temperature": 1, "thoughts": True}


@pytest.mark.parametrize(("seconds", "stream"), [(300.0, True), (2.0, True), (2.0, False)])
def test_a_client_that_does_not_read_holds_nothing(
    seconds: float, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation of a stream stops, with an event if the client reads in time; else its connection is aborted."""
    monkeypatch.setattr("quietstar.serving.events.MOST_UNREAD", 40)
    monkeypatch.setattr(running, "listen", narrow)
    body = json.dumps(LONG | {"stream": stream} | ({} if stream else {"max_tokens": 12})).encode()
    with served(speaking_model(letters=False), request_seconds=seconds) as (address, server), connected(address) as raw:
        raw.sendall(POST.format(kind="application/json", length=len(body)).encode() + body)
        eventually(lambda: server.engine.running)
        eventually(lambda: not server.engine.running)
        written = server.engine.metrics.registry.get_sample_value("quietstar_tokens_total", {"kind": "visible"})
        assert written < 8 * (CONTEXT - 20) / 2
        if seconds < 10:
            eventually(lambda: not server.server_state.connections)
            return
        found = b""
        while b"[DONE]" not in found[-30:]:
            found += raw.recv(2**20)
        assert b"reads_too_slowly" in found


def test_further_connections_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 503; and the limit is one that the process can keep."""
    monkeypatch.setattr(run, "CONNECTIONS", 3)
    with served(speaking_model()) as (address, _):
        held = [connected(address) for _ in range(3)]
        answer = httpx.get(f"{address}/healthz")
        assert answer.status_code == 503
        for each in held:
            each.close()
        eventually(lambda: httpx.get(f"{address}/healthz").status_code == 200)
    monkeypatch.undo()
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(run.resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for soft, hard, n in [(1024, 4096, 1024), (1024, 1024, 768), (4096, 4096, 1024), (-1, -1, 1024), (256, 300, 44)]:
        monkeypatch.setattr(run.resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        assert run.n_connections() == n
    assert set_to == [(1280, 4096), (1024, 1024), (300, 300)]
    monkeypatch.setattr(run.resource, "getrlimit", lambda _: (200, 256))
    with pytest.raises(SettingsError, match=r"may open only 256 files; allow more than 256 \(ulimit -n\)"):
        run.n_connections()


def test_a_port_that_is_taken_meanwhile_is_said_so() -> None:
    """Of two servers that bound the same address before either listened, one fails."""
    with listen("127.0.0.1", 0) as door, listen("127.0.0.1", door.getsockname()[1]) as other:
        other.listen()
        late = run.make_server(speaking_model(), TOKENIZER, ServeArguments(), NAME)
        with pytest.raises(SettingsError, match=r"host 127.0.0.1 and port \d+ cannot be used: Address already in use"):
            late.run(sockets=[door])
        assert not late.engine.is_alive
