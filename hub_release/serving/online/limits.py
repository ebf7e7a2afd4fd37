"""What protects the server from its clients: limits of size and time, around the whole application."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_DISCARDED = 8
"""A body that is too large is read up to so many times the limit: who still sends does not see an answer."""
HEADER_SECONDS = 10
"""A connection whose request has not come to the end of its head is closed after so many seconds."""


class LimitedBody:
    """An application whose requests have at most so many bytes, and all of them in time; the body is read before it starts.

    Args:
        application: an ASGI application.
        most_bytes: of a body; a larger one gets 413.
        seconds: for a body; a slower one gets 408.
    """

    def __init__(self, application: Any, most_bytes: int, seconds: float) -> None:
        self.application, self.most_bytes, self.seconds = application, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        too_large = f"the body has more than {self.most_bytes:,} bytes. Remedy: send fewer texts at once"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _DISCARDED * self.most_bytes:
            await _refuse(send, 413, too_large)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.seconds)
        except TimeoutError:
            await _refuse(send, 408, f"the body did not come within {self.seconds:g} s. Remedy: send it faster")
            return
        if body is None:
            return  # the client has gone
        if len(body) > self.most_bytes:
            await _refuse(send, 413, too_large)
            return
        await self._answer(scope, body, receive, send)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Call the application, and cancel it if the client goes: nobody waits for the answer any more."""
        given, gone = False, asyncio.Event()

        async def receive_body() -> dict[str, Any]:
            nonlocal given
            if given:
                await gone.wait()
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        answering = asyncio.ensure_future(self.application(scope, receive_body, send))
        watching = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            if not answering.done():
                answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or its first part if it is too large; None if the client goes."""
        body, size = bytearray(), 0
        while size <= _DISCARDED * self.most_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if len(body) <= self.most_bytes:
                body += part
            if not message.get("more_body"):
                break
        return bytes(body)


async def _refuse(send: Send, status: int, why: str) -> None:
    content = json.dumps({"error": why, "error_type": "validation"}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP, but for connections that send the head of a request too slowly, or never: these are closed.

    uvicorn itself has a limit of time only between requests. h11 limits the size of a head (64 KiB); httptools does not.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client connects."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """A client sends something."""
        super().data_received(data)
        if self._is_reading_head():
            self._wait_for_head()
        elif self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """A client goes."""
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _is_reading_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._close_if_reading_head)

    def _close_if_reading_head(self) -> None:
        if self._is_reading_head() and not self.transport.is_closing():
            self.transport.close()
