"""Load a model, and serve it until the process is interrupted."""

import asyncio
import copy
import logging
import os
import resource
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from quietstar.errors import MissingExtraError, SettingsError
from quietstar.inference.loading import load_model, name_of
from quietstar.inference.text_settings import say_what_is_set_aside
from quietstar.model import QuietStarForCausalLM
from quietstar.serving.arguments import KEY_VARIABLE, ServeArguments
from quietstar.text.unicode import check_text

try:
    import uvicorn
    from fastapi import FastAPI

    from quietstar.serving.app import make_app
    from quietstar.serving.engine import Engine
    from quietstar.serving.guard import allowed_hosts, look_up
    from quietstar.serving.workers import Workers
except ImportError as error:
    package = (error.name or "").partition(".")[0]
    if package not in ("fastapi", "pydantic", "prometheus_client", "starlette", "uvicorn"):
        raise
    raise MissingExtraError(package, "serve", "quietstar serve") from error

logger = logging.getLogger(__name__)

CONNECTIONS = 1024
"""maximum number of open connections; further ones get status 503"""
OTHER_FILES = 256
"""other files that may be open: the model's, and connections that are about to get status 503"""
GOODBYE_SECONDS = 5
"""time to send the end of streams at shutdown"""


def serve(model_name: str, args: ServeArguments, say: Callable[[str], None]) -> None:
    """Serve a model until SIGINT or SIGTERM; `say` is called with a line when the server is ready.

    Raises:
        QuietStarError: the model, the address or a setting is invalid.
    """
    with listen(args.host, args.port) as door:
        address = address_of(args.host, door.getsockname()[1])
        name = args.model_name or name_of(model_name)
        check_text("the model's name", name)
        if args.api_key() is None and allowed_hosts(args.host) is None:
            logger.warning(
                "the server at %s needs no API key: anybody who reaches it can use it; see --api_key_file", args.host
            )
        serve_one = partial(serve_at, model_name=model_name, args=args, name=name)
        if args.workers == 1:
            serve_one(door, lambda: say(f"serving {name} at {address}"))
        else:
            if key := args.api_key():  # read once: the file may be a pipe, or change
                os.environ[KEY_VARIABLE], args.api_key_file = key.decode(), None
            told = f"serving {name} at {address}, by {args.workers} processes"
            signal.raise_signal(Workers(args.workers, door, serve_one).run(lambda: say(told)))


def serve_at(
    door: socket.socket, when_ready: Callable[[], None], *, model_name: str, args: ServeArguments, name: str
) -> None:
    """Serve a model at a socket until SIGINT or SIGTERM.

    Raises:
        QuietStarError: the model or a setting is invalid.
    """
    if args.workers > 1:
        args = with_own_seed(args)
    server = make_server(*load_served(model_name, args), args, name)
    server.when_ready = when_ready
    server.run(sockets=[door])


def with_own_seed(args: ServeArguments) -> ServeArguments:
    """Return the options of one server of several: with one seed, all would draw the same for requests without one."""
    return replace(args, seed=secrets.randbits(32))


def load_served(model_name: str, args: ServeArguments) -> tuple[QuietStarForCausalLM, PreTrainedTokenizerBase]:
    """Return a model in evaluation mode and its tokenizer, and say which of its settings do not count here.

    Raises:
        QuietStarError: the model or a setting is invalid.
    """
    model, tokenizer = load_model(model_name, args)
    assert isinstance(model, QuietStarForCausalLM)
    say_what_is_set_aside(model)
    return model, tokenizer


def make_engine(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, args: ServeArguments, name: str
) -> tuple[Engine, FastAPI]:
    """Return an engine for a model, which the caller starts and stops, and the web application around it."""
    tokenizers = [copy.deepcopy(tokenizer) for _ in range(2)]  # for two threads
    for each in tokenizers:
        each.model_max_length = int(1e30)  # the intake checks lengths, so the tokenizer need not warn
    engine = Engine(model, tokenizers[0], args)
    return engine, make_app(engine, tokenizers[1], args, name)


def make_server(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, args: ServeArguments, name: str
) -> "Server":
    """Return a server for a model in evaluation mode; the caller runs it."""
    engine, app = make_engine(model, tokenizer, args, name)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=n_connections() + 1,  # uvicorn counts the new connection, too
        ws="none",
        timeout_graceful_shutdown=GOODBYE_SECONDS,
        loop="asyncio",  # uvicorn would choose others where they are installed: the limits are tested with these
        http="h11",
    )
    return Server(config, engine)


class Server(uvicorn.Server):
    """A web server with its engine, which starts and stops with it."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine
        self.when_ready: Callable[[], None] = lambda: None
        self._full_since: dict[Any, float] = {}
        """connection -> since when it has always had unread bytes"""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engine and listen."""
        self.engine.start()
        try:
            await super().startup(sockets)
        except OSError as error:  # another server has bound the same address, and listened first
            self.engine.stop()
            host, port = (sockets or [])[0].getsockname()[:2]
            raise _taken(host, port, error) from error
        self.when_ready()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            self._cut_off()
        return await super().on_tick(counter)

    def _cut_off(self) -> None:
        """Abort connections whose client has left bytes unread for as long as a request may take.

        If they were closed instead, they would stay open until the client has read everything, which may never happen.
        """
        now = time.monotonic()
        full = [each for each in self.server_state.connections if _has_unread(each)]
        self._full_since = {each: self._full_since.get(each, now) for each in full}
        for each, since in self._full_since.items():
            if now - since > self.engine.settings.request_seconds:
                logger.warning("aborted the connection of a client that does not read its response")
                each.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the engine, which ends running streams, and then the server."""
        await asyncio.to_thread(self.engine.stop)
        await super().shutdown(sockets)


def _has_unread(connection: Any) -> bool:
    transport = connection.transport
    return transport is not None and transport.get_write_buffer_size() > 0


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which does not accept connections yet.

    Raises:
        SettingsError: the address is in use, or does not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = look_up(host, port)
        door = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"host {host!r} is not a valid address: {reason}; give one such as 127.0.0.1") from error
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError as error:
        door.close()
        raise _taken(host, port, error) from error
    return door


def _taken(host: str, port: int, error: OSError) -> SettingsError:
    return SettingsError(
        f"host {host} and port {port} cannot be used: {error.strerror}; give another --port, or 0 for a free one"
    )


def n_connections() -> int:
    """Return how many connections may be open: CONNECTIONS, or fewer if the limit of open files is lower.

    Raises:
        SettingsError: the limit leaves no file for connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    if soft <= OTHER_FILES:
        raise SettingsError(
            f"this process may open only {soft} files; allow more than {OTHER_FILES} (ulimit -n), one per connection"
        )
    return min(CONNECTIONS, soft - OTHER_FILES)


def address_of(host: str, port: int) -> str:
    """Return the URL of the server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
