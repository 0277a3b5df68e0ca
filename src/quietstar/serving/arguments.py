"""Options of `quietstar serve`."""

import os
import re
from dataclasses import dataclass

from quietstar.config import check_n_ahead
from quietstar.errors import DataError, SettingsError
from quietstar.inference.loading import UseArguments
from quietstar.runs.fields import option
from quietstar.text.files import read_text
from quietstar.text.unicode import check_text

SERVER = "server"
LIMITS = "limits"
KEY_VARIABLE = "QUIETSTAR_API_KEY"
_ORIGIN = re.compile(r"\*|https?://[^/?#@\s]+")


@dataclass(kw_only=True)
class ServeArguments(UseArguments):
    """Options of `quietstar serve`.

    Raises:
        SettingsError: a value is invalid.
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for everybody who can reach this machine", SERVER)
    port: int = option(8000, "port to listen on; 0 picks a free one", SERVER)
    model_name: str | None = option(None, "name of the model in requests (default: its folder's name)", SERVER)
    api_key_file: str | None = option(
        None, f"file with the key that requests must send; or set {KEY_VARIABLE} (default: no key)", SERVER
    )
    workers: int = option(1, "processes that serve, each with a copy of the model", SERVER)
    cors_origin: list[str] = option(
        [], "origins of web pages that may use the server, such as http://localhost:3000; * for all", SERVER
    )
    max_batch: int = option(32, "texts generated at the same time", LIMITS)
    max_queue: int = option(64, "requests that may wait; further ones get status 429", LIMITS)
    max_prompt_tokens: int | None = option(
        None, "tokens of a prompt (default: the model's context minus a thought)", LIMITS
    )
    max_tokens: int = option(2048, "tokens that a request may generate, without its thoughts", LIMITS)
    max_n_ahead: int = option(
        64, "tokens of a thought that a request may ask for; never fewer than it has without asking", LIMITS
    )
    max_n: int = option(
        32, "texts that a request may generate, n for each of its prompts; never more than max_batch", LIMITS
    )
    max_request_bytes: int = option(2**20, "bytes of a request's body", LIMITS)
    request_seconds: float = option(300.0, "seconds that a request may take, including the time in the queue", LIMITS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host:
            raise SettingsError("host is empty; give an address such as 127.0.0.1")
        if not 0 <= self.port < 2**16:
            raise SettingsError(f"port is {self.port}; give a number from 0 to {2**16 - 1}")
        for name in (
            "workers",
            "max_batch",
            "max_queue",
            "max_prompt_tokens",
            "max_tokens",
            "max_n",
            "max_request_bytes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; give a number of at least 1")
        check_n_ahead(self.max_n_ahead, "max_n_ahead")
        if not 0 < self.request_seconds < float("inf"):
            raise SettingsError(f"request_seconds is {self.request_seconds}; give a number above 0")
        check_text("model_name", self.model_name)
        if self.model_name == "":
            raise SettingsError("model_name is empty; give a name, or leave it out")
        for origin in self.cors_origin:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(f"cors_origin is {origin!r}; give an origin such as http://localhost:3000, or *")

    @property
    def most_texts(self) -> int:
        """The number of texts that a request may generate: all of them have to fit into a batch."""
        return min(self.max_n, self.max_batch)

    def api_key(self) -> bytes | None:
        """Return the key that requests must send, from the file or the environment; None if neither is set.

        Raises:
            SettingsError: the file cannot be read, or the key is invalid.
        """
        if self.api_key_file is None:
            key, source = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
            if key is None:
                return None
        else:
            source = f"api_key_file {self.api_key_file}"
            try:
                key = read_text(self.api_key_file)
            except DataError as error:
                raise SettingsError(f"{source} cannot be read: give a file with one line of ASCII ({error})") from error
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingsError(f"{source} is not a valid key; give one word of printable ASCII")
        return key.encode()
