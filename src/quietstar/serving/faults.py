"""Errors of requests, in OpenAI's format."""

from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"


class RequestError(Exception):
    """A request is refused, or has failed.

    Args:
        status: HTTP status.
        message: one line: what was given, what is allowed, what to do.
        kind: `type` in the response; by default it follows from the status.
        param: the field that caused the error.
        code: identifier of the error, for programs.
        headers: headers of the response.
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
        """Body of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def _printable(text: str) -> str:
    """Escape lone surrogates, which cannot be encoded."""
    return text.encode(errors="backslashreplace").decode()


def busy(n_waiting: int, seconds: int) -> RequestError:
    """Return the error of a full queue."""
    return RequestError(
        429,
        f"{n_waiting} requests are already waiting; try again in {seconds} s",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def too_slow(seconds: float) -> RequestError:
    """Return the error of a request that took longer than the server allows."""
    return RequestError(
        504,
        f"the request took longer than the {seconds:g} s that the server allows; request fewer tokens",
        kind="timeout_error",
        code="timeout",
    )


def failed() -> RequestError:
    """Return the error of a bug or a failure in the server, which is logged."""
    return RequestError(500, "internal server error; see the server's log", code="internal_error")


def stopping() -> RequestError:
    """Return the error of a server that is shutting down."""
    return RequestError(503, "the server is shutting down; try again later", code="shutting_down")
