"""Connections on which a body was refused: the answer is sent, and then the connection ends.

A server would else read on, for as long as somebody sends, to get to the next request. But where a connection is closed
at once, while its client still sends, the answer may be lost: a little more is read, and thrown away.
"""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BYTES = 2**22
"""that are read at most after an answer"""
SECONDS = 1.0
"""for which they are waited for at most"""


class CloseUnread:
    """ASGI middleware, outermost: an answer that comes before the end of the body is the connection's last.

    Args:
        app: what is guarded.
        n_bytes: that are read at most after such an answer.
        seconds: for which they are waited for at most.
    """

    def __init__(self, app: ASGIApp, *, n_bytes: int = BYTES, seconds: float = SECONDS) -> None:
        self.app, self.n_bytes, self.seconds = app, n_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, receive, send)
        await self.app(scope, exchange.receive, exchange.send)


class _Exchange:
    """A request and its answer."""

    def __init__(self, limits: CloseUnread, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.limits, self._receive, self._send = limits, receive, send
        self.is_unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self.closes = False

    async def receive(self) -> Message:
        """A part of the body."""
        message = await self._receive()
        self.is_unread = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer; before its end the rest of the body is read, as far as that goes."""
        if message["type"] == "http.response.start" and self.is_unread:
            self.closes = True
            MutableHeaders(scope=message)["Connection"] = "close"
        is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not (is_end and self.closes):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._read_on()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read_on(self) -> None:
        n_bytes = 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                while self.is_unread and n_bytes < self.limits.n_bytes:
                    n_bytes += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
