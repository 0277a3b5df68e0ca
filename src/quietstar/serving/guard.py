"""Middleware that checks host, key, type and size of requests, and adds security headers to responses."""

import asyncio
import hmac
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quietstar.serving.faults import RequestError, failed
from quietstar.serving.metrics import Metrics
from quietstar.serving.problems import check_json

logger = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}
BODY_SECONDS = 30.0
"""time within which a body has to arrive"""


class Guard:
    """ASGI middleware that checks requests, adds headers to responses, and counts them.

    It reads a body completely, up to the limit, before the application sees the request.

    Args:
        app: the application.
        metrics: counts responses.
        endpoints: paths to count by name.
        open_paths: paths that need no key.
        open_folder: prefix of further paths that need no key.
        api_key: the key for all other paths; None if no key is needed.
        hosts: host names that are accepted; None for all.
        max_bytes: largest size of a body.
        body_seconds: time within which a body has to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        endpoints: Iterable[str],
        open_paths: Iterable[str],
        open_folder: str,
        api_key: bytes | None,
        hosts: frozenset[str] | None,
        max_bytes: int,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.app, self.metrics, self.endpoints = app, metrics, frozenset(endpoints)
        self.open_paths, self.open_folder = frozenset(open_paths), open_folder
        self.api_key, self.hosts, self.max_bytes, self.body_seconds = api_key, hosts, max_bytes, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 499, time.monotonic()  # 499 if the client disconnects before the response

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            await self._checked(scope, receive, send_guarded)
        except RequestError as refusal:
            await answer_of(refusal)(scope, receive, send_guarded)
        except Exception:
            if status != 499:  # the response has begun, so all that is left is to close the connection
                raise
            logger.exception("a request failed")
            await answer_of(failed())(scope, receive, send_guarded)
        finally:
            endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
            self.metrics.answered(endpoint, status, time.monotonic() - began)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers.get("host", ""))
        self._check_key(scope["path"], headers.get("authorization", ""))
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, "Content-Type is not application/json; send JSON with that header")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "Content-Encoding is not supported; send the body without it")
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await self._read(headers.get("content-length"), receive)
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.body_seconds:g} s", code="timeout") from None
        if body is None:
            return
        if body:
            check_json(body)
        await self.app(scope, _replayed(body, receive), send)

    def _check_host(self, host: str) -> None:
        """Raise for unknown host names, against DNS rebinding."""
        if self.hosts is not None and name_of(host) not in self.hosts:
            raise RequestError(421, "the Host header has another name; use the address that the server listens on")

    def _check_key(self, path: str, given: str) -> None:
        if self.api_key is None or path in self.open_paths or path.startswith(self.open_folder):
            return
        scheme, _, key = given.partition(" ")
        right = hmac.compare_digest(key.strip().encode(), self.api_key)
        if not right or scheme.lower() != "bearer":
            raise RequestError(
                401,
                "the API key is missing or wrong; send the header Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, length: str | None, receive: Receive) -> bytes | None:
        """Return the body; None if the client disconnects before its end."""
        too_large = RequestError(413, f"the body has more than the {self.max_bytes} bytes allowed; send a smaller one")
        if length is not None and length.isdecimal() and int(length[:20]) > self.max_bytes:
            raise too_large
        parts, n_bytes = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > self.max_bytes:
                raise too_large
            if not message.get("more_body", False):
                return b"".join(parts)


def answer_of(error: RequestError) -> JSONResponse:
    """Return the response of an error."""
    return JSONResponse(error.body, error.status, error.headers)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` with the body in one message, followed by the original messages."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


_HOST = re.compile(r"(?:\[(?P<ip>[0-9a-f:.%]+)\]|(?P<name>[^:\[\]@/]*))(?::\d*)?", re.IGNORECASE)


def name_of(host: str) -> str:
    """Return the name in a Host header, without port: [::1]:8000 -> ::1; empty if the header is malformed."""
    found = _HOST.fullmatch(host)
    return "" if found is None else (found["ip"] or found["name"] or "").lower().removesuffix(".")


def allowed_hosts(host: str) -> frozenset[str] | None:
    """Return the names that a Host header may have if the server listens on a loopback address, else None for any."""
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if _is_loopback(host) else None


def look_up(host: str, port: int | None = None) -> tuple[Any, Any, int, str, Any]:
    """Return family, kind, protocol, name and address of a socket that listens on a host.

    Raises:
        OSError: the host does not exist.
        UnicodeError: the name is not valid.
    """
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]


def _is_loopback(host: str) -> bool:
    """Whether a host is a loopback address, however it is written: also 127.1, or a name that resolves to one."""
    try:
        first = look_up(host)[4][0]
        address = ipaddress.ip_address(str(first).partition("%")[0])
    except (OSError, UnicodeError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
