"""Closes connections whose request was refused before its body was read.

Without this, uvicorn would read such a body to its end, however long, to get to the next request. If it closed the
connection at once while the client is still sending, the client might lose the response; so a little more of the body
is read first, and discarded.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BYTES = 2**22
"""maximum number of bytes to read after the response"""
SECONDS = 1.0
"""maximum time to wait for them"""


class CloseUnread:
    """Outermost ASGI middleware: a response that comes before the end of the body is the connection's last."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        closes = False

        async def read() -> Message:
            nonlocal is_unread
            message = await receive()
            is_unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drain() -> None:
            n_bytes = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS):
                    while is_unread and n_bytes < BYTES:
                        n_bytes += len((await read()).get("body", b""))

        async def respond(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start" and is_unread:
                closes = True
                MutableHeaders(scope=message)["Connection"] = "close"
            is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (is_end and closes):
                await send(message)
                return
            await send({**message, "more_body": True})
            await drain()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, read, respond)
