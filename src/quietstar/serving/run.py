"""Load a model, and serve it until somebody says stop."""

import asyncio
import copy
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from quietstar.errors import MissingExtraError, SettingsError
from quietstar.inference.loading import load_model, name_of
from quietstar.inference.text_settings import say_what_is_set_aside
from quietstar.model import QuietStarForCausalLM
from quietstar.serving.arguments import ServeArguments
from quietstar.text.unicode import check_text

try:
    import uvicorn

    from quietstar.serving.app import make_app
    from quietstar.serving.engine import Engine
    from quietstar.serving.guard import allowed_hosts, look_up
except ImportError as error:
    package = (error.name or "").partition(".")[0]
    if package not in ("fastapi", "pydantic", "prometheus_client", "starlette", "uvicorn"):
        raise
    raise MissingExtraError(package, "serve", "quietstar serve") from error

try:
    import resource
except ImportError:  # not everywhere
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

CONNECTIONS = 1024
"""at once; further ones are answered with 503"""
OTHER_FILES = 256
"""that may be open beside: of the model, and of connections until they are answered with 503"""
GOODBYE_SECONDS = 5
"""in which streams that were ended may still be sent"""


def serve(model_name: str, args: ServeArguments, say: Callable[[str], None]) -> None:
    """Serve a model until SIGINT or SIGTERM.

    Args:
        model_name: folder or hub name of a thinking model.
        args: where, and what is allowed.
        say: is told when the server is ready, in one line.

    Raises:
        QuietStarError: the model, the address or the settings need the user.
    """
    with listen(args.host, args.port) as door:
        if args.api_key() is None and allowed_hosts(args.host) is None:
            logger.warning(
                "no API key is asked for at %s: whoever reaches it may use it; see --api_key_file", args.host
            )
        model, tokenizer = load_model(model_name, args)
        assert isinstance(model, QuietStarForCausalLM)
        say_what_is_set_aside(model)
        name = args.model_name or name_of(model_name)
        check_text("the model's name", name)
        server = make_server(model, tokenizer, args, name)
        address = address_of(args.host, door.getsockname()[1])
        server.when_ready = lambda: say(f"serving {name} at {address}")
        server.run(sockets=[door])


def make_server(
    model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, args: ServeArguments, name: str
) -> "Server":
    """A server that is not running yet, over a model in evaluation mode."""
    tokenizers = [copy.deepcopy(tokenizer) for _ in range(2)]  # for two threads
    for each in tokenizers:
        each.model_max_length = int(1e30)  # lengths are checked here, and said in our words
    engine = Engine(model, tokenizers[0], args)
    app = make_app(engine, tokenizers[1], args, name)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=n_connections() + 1,  # it counts the one that asks
        ws="none",
        timeout_graceful_shutdown=GOODBYE_SECONDS,
    )
    return Server(config, engine)


class Server(uvicorn.Server):
    """A web server with its engine: they start and end together.

    Args:
        config: of uvicorn.
        engine: not started yet.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine
        self.when_ready: Callable[[], None] = lambda: None
        self._full_since: dict[Any, float] = {}
        """connections with unread bytes, and since when there was always some"""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self.engine.start()
        try:
            await super().startup(sockets)
        except OSError as error:  # another server was told to listen there after us, and was ready before
            self.engine.stop()
            host, port = (sockets or [])[0].getsockname()[:2]
            raise _taken(host, port, error) from error
        self.when_ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if counter % 10 == 0:
            self._cut_off()
        return await super().on_tick(counter)

    def _cut_off(self) -> None:
        """End connections that have had something to be read for as long as a request may take.

        Closed, they would stay until their client has read everything, which it may never do.
        """
        now = time.monotonic()
        full = [each for each in self.server_state.connections if _has_unread(each)]
        self._full_since = {each: self._full_since.get(each, now) for each in full}
        for each, since in self._full_since.items():
            if now - since > self.engine.settings.request_seconds:
                logger.warning("a client does not read its answer; its connection is cut")
                each.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is written, so that running streams end, and then connections."""
        await asyncio.to_thread(self.engine.stop)
        await super().shutdown(sockets)


def _has_unread(connection: Any) -> bool:
    transport = connection.transport
    return transport is not None and transport.get_write_buffer_size() > 0


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address, which nobody can connect to yet.

    Raises:
        SettingsError: the address is in use, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = look_up(host, port)
        door = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"host {host!r} is no address: {reason}; give one such as 127.0.0.1") from error
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
    """That may be open at once: fewer than CONNECTIONS where this process may not open as many files.

    Raises:
        SettingsError: it may open so few that nobody could be served.
    """
    if resource is None:
        return CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    if soft <= OTHER_FILES:
        raise SettingsError(
            f"this process may open {soft} files; allow more than {OTHER_FILES} (ulimit -n), a connection is one, too"
        )
    return min(CONNECTIONS, soft - OTHER_FILES)


def address_of(host: str, port: int) -> str:
    """As a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
