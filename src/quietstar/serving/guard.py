"""What stands before the application: who may ask, how much may be sent, and what every answer says to browsers."""

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
from quietstar.serving.protocol import check_json

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
"""in which a body has to arrive"""


class Guard:
    """ASGI middleware: host, key, type and size of a request; headers and counts of the answer.

    A body is read whole, up to the limit, before the application sees the request.

    Args:
        app: what is guarded.
        metrics: counts answers.
        endpoints: paths that are counted by name.
        open_paths: paths that need no key.
        open_folder: beginning of further ones.
        api_key: what others must bring; None lets everybody in.
        hosts: names that a Host header may give; None for any.
        max_bytes: of a body.
        body_seconds: in which it has to arrive.
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
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 499, time.monotonic()  # of a client that leaves before there is an answer

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
            if status != 499:  # an answer has begun: the server closes the connection
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
            raise RequestError(415, "the body's Content-Type is not application/json; send JSON, and say so")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "the body has a Content-Encoding; send it as it is")
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
        """A page of another site whose name was pointed at this machine is not served."""
        if self.hosts is not None and name_of(host) not in self.hosts:
            raise RequestError(421, "the Host header names another machine; use the address that the server listens at")

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
        """The body; None where the client has left before its end."""
        too_large = RequestError(413, f"the body is larger than the {self.max_bytes} bytes that are allowed; send less")
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
    """What is sent of it."""
    return JSONResponse(error.body, error.status, error.headers)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message, and then whatever follows."""
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
    """A Host header without its port: [::1]:8000 -> ::1; empty where it is none."""
    found = _HOST.fullmatch(host)
    return "" if found is None else (found["ip"] or found["name"] or "").lower().removesuffix(".")


def allowed_hosts(host: str) -> frozenset[str] | None:
    """Names by which a server at a loopback address is asked for; None, any, where it listens at another one."""
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if _is_loopback(host) else None


def look_up(host: str, port: int | None = None) -> tuple[Any, Any, int, str, Any]:
    """Family, kind, protocol, name and address of the socket that a server listens with at a host.

    Raises:
        OSError: there is no such host.
        UnicodeError: it cannot be a host's name.
    """
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]


def _is_loopback(host: str) -> bool:
    """Whatever way it is written: 127.1, or a name of this machine's own."""
    try:
        first = look_up(host)[4][0]
        address = ipaddress.ip_address(str(first).partition("%")[0])
    except (OSError, UnicodeError, ValueError):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
