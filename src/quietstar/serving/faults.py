"""What goes wrong with a request, as OpenAI's clients understand it."""

from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"


class RequestError(Exception):
    """A request is refused, or has failed.

    Args:
        status: of HTTP.
        message: one line: what was given, what is allowed, what to do.
        kind: `type` in the answer; by the status unless given.
        param: the field that it is about.
        code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, _printable(" ".join(message.split()))
        self.kind = kind or (INVALID if status < 500 else SERVER)
        self.param = None if param is None else _printable(param)
        self.code, self.headers = code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def _printable(text: str) -> str:
    """Half characters (lone surrogates), which no answer can hold, are written out."""
    return text.encode(errors="backslashreplace").decode()


def busy(n_waiting: int, seconds: int) -> RequestError:
    """The queue is full."""
    return RequestError(
        429,
        f"{n_waiting} requests are waiting already; try again in {seconds} s",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def too_slow(seconds: float) -> RequestError:
    """A request has taken longer than the server allows."""
    return RequestError(
        504,
        f"the request took longer than the {seconds:g} s that the server allows; ask for fewer tokens",
        kind="timeout_error",
        code="timeout",
    )


def failed() -> RequestError:
    """Something of ours broke; what it was stands in the server's log."""
    return RequestError(500, "the server failed at this request; its log says why", code="internal_error")


def stopping() -> RequestError:
    """The server is about to end."""
    return RequestError(503, "the server is shutting down; try again later", code="shutting_down")
