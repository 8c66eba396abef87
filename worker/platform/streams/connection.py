"""What the two kinds of connection have in common: one log, read by one thread, closed from any."""

import contextlib
import socket
from collections.abc import Generator
from typing import Final, Protocol

from worker.platform.errors import StreamError

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class LogConnection(Protocol):
    """A log that has not been opened yet."""

    def batches(self) -> Generator[list[str]]:
        """Open it and read it to its end; raises `ClientError`."""
        ...

    def close(self) -> None:
        """Give everything back; whoever waits for lines gets `StreamError`. Safe from any thread."""
        ...


def closed_error() -> StreamError:
    """For a reader whose connection was closed under its hands."""
    return StreamError("500 Internal Server Error: the stream was closed on this side", 500)


def keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel notice within a minute that the other machine is gone.

    A ping of the websocket would not do: a slow reader does not read its answer either.
    """
    # A short log is over, and its socket gone or closed, before it comes to this.
    if sock is None:
        return
    with contextlib.suppress(OSError):
        for level, option, value in _keepalive_options():
            sock.setsockopt(level, option, value)


def _keepalive_options() -> list[tuple[int, int, int]]:
    """The options for `setsockopt`; not every system has each."""
    names = [(getattr(socket, name, None), seconds) for name, seconds in _KEEPALIVE]
    known = [(socket.IPPROTO_TCP, option, value) for option, value in names if option is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]
