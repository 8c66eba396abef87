"""A transport for httpx whose every wait on the network ends at the caller's deadline.

httpx's own timeouts are for one read: a server that drips a byte now and then, in the headers too, would hold
a thread for ever, and a thread pool cannot cancel a task.
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import httpcore
import httpx

KEEPALIVE_SECONDS = 1.5
"""Below the 2 s after which gunicorn hangs up: a call that must not be repeated is to find its line alive."""

_PIECE = 64 * 1024  # bytes written between two looks at the clock
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Whatever this thread reads or writes through a `DeadlineTransport` in here is over after `seconds`."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """One for all clients, as loading the certificates takes long. SSL_CERT_FILE counts; proxies do not."""
    return httpx.create_ssl_context(trust_env=True)


class DeadlineTransport(httpx.HTTPTransport):
    """httpx's transport over a pool whose connections know the deadline."""

    def __init__(self) -> None:
        super().__init__(verify=tls_context(), trust_env=False)
        # httpx offers no way to name the network backend of its pool; httpcore does.
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls_context(),
            max_connections=None,  # the worker's threads are the limit, and a full pool is slow
            max_keepalive_connections=20,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=_Backend(),
        )


def _left(timeout: float | None) -> float | None:
    end = _deadline.get()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("deadline")
    return left if timeout is None else min(timeout, left)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, _left(timeout), local_address, socket_options)
        return _Stream(stream)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._inner.write(buffer[start : start + _PIECE], _left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
