"""The connections to clients: bounded in number and in time.

uvicorn bounds the headers' size and the time between two requests. It waits without limit for a
request that was sent in part, and for a response to be read.
"""

import asyncio
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
RECEIVE_SECONDS = 20.0  # from the connection, or a request's first byte, to the request's last
SEND_SECONDS = 30.0  # until the client's system has taken all that was written so far
STOP_SECONDS = 2  # for requests to be answered when the server stops
_BACKLOG = 128  # connections that the system holds, and that are accepted at a time


def server_of(application: ASGIApp) -> uvicorn.Server:
    """Returns a server that stops STOP_SECONDS after SIGTERM, whatever its clients do."""
    config = uvicorn.Config(
        application,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=STOP_SECONDS,
        log_config=None,
        log_level="critical",  # errors of the application are logged by itself
        access_log=False,
    )
    return uvicorn.Server(config)


class Connection(H11Protocol):
    """A client's connection, closed when the client is too slow.

    If there are too many, the one whose request has been on its way for the longest time is closed:
    half-open connections do not keep out who sends whole requests.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pause_writing: when something is left unsent
        self._expect_request()
        if len(self.connections) > MAX_CONNECTIONS:
            receiving = {
                connection._receiving.when(): connection
                for connection in self.connections
                if isinstance(connection, Connection) and connection._receiving is not None
            }
            receiving[min(receiving)]._drop()

    def data_received(self, data: bytes) -> None:
        """Ends the time for a request with its last byte."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._expect_request()
        else:
            self._end_receiving()

    def on_response_complete(self) -> None:
        """Starts the time for a request that began before the response to the last one ended."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._expect_request()

    def pause_writing(self) -> None:
        """Starts the time for the client to read."""
        super().pause_writing()
        self._sending = self.loop.call_later(SEND_SECONDS, self._drop)

    def resume_writing(self) -> None:
        """Ends it: nothing is left unsent."""
        super().resume_writing()
        self._end_sending()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends both times."""
        super().connection_lost(exc)
        self._end_receiving()
        self._end_sending()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, unless a response has begun; the application no longer can."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self._drop()

    def _expect_request(self) -> None:
        if self._receiving is None:
            self._receiving = self.loop.call_later(RECEIVE_SECONDS, self._drop)

    def _end_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _end_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _drop(self) -> None:
        """Closes the connection now, with what is left unsent."""
        self._end_receiving()
        self.connections.discard(self)
        self.transport.abort()
