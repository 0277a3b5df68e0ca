"""Events of the engine's thread, delivered to the event loop that responds to the request."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request

from quietstar.serving.engine import Engine
from quietstar.serving.faults import RequestError
from quietstar.serving.jobs import Errand, Event, Job, Returned

MOST_UNREAD = 4096
"""maximum number of events that wait for a client to read them"""


class Events:
    """The events of one request, whose work is submitted at once, until it ends or its client disconnects.

    Raises:
        RequestError: the engine does not accept the work, or, during iteration, the request has failed.
    """

    def __init__(self, engine: Engine, work: Job | Errand, request: Request) -> None:
        loop, self._engine = asyncio.get_running_loop(), engine
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(self._take, event)

        self._ticket = engine.submit(work, emit)
        self._watch = loop.create_task(self._cancel_when_gone(request))
        self._n_left = self._ticket.n_rows

    def _take(self, event: Event) -> None:
        """Queue an event, or cancel the request of a client that reads too slowly."""
        if self._queue.qsize() < MOST_UNREAD:
            self._queue.put_nowait(event)
        elif self._queue.qsize() == MOST_UNREAD:
            self._engine.cancel(self._ticket)
            message = f"{MOST_UNREAD} tokens wait to be read; read faster, or request fewer tokens"
            self._queue.put_nowait(RequestError(503, message, code="reads_too_slowly"))

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        """Yield the tokens of a job, or the result of an errand."""
        try:
            while self._n_left:
                event = await self._queue.get()
                if isinstance(event, RequestError):
                    raise event
                if isinstance(event, Returned) or event.finish_reason is not None:
                    self._n_left -= 1
                yield event.value if isinstance(event, Returned) else event
        finally:
            self._watch.cancel()
            self._engine.cancel(self._ticket)

    async def _cancel_when_gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._engine.cancel(self._ticket)
