"""A limit of the time of a whole exchange: httpx limits single reads and writes alone."""

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
"""Less than gunicorn's keepalive of 2 s: a request that must not be sent twice needs a live connection."""

_WRITE_CHUNK_BYTES = 64 * 1024  # written between two checks of the deadline
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Limit the time of all reads and writes through a `DeadlineTransport` in this context.

    httpx limits single reads only, so a server that sends a byte from time to time would never time out.

    Args:
        seconds: From now on. Later reads and writes raise `httpx.ReadTimeout`.

    Yields:
        Nothing.
    """
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """Make the TLS settings that all clients share, because loading the certificates is slow.

    Returns:
        A context that verifies certificates. The environment's SSL_CERT_FILE and SSL_CERT_DIR are respected.
    """
    return httpx.create_ssl_context(trust_env=True)


class DeadlineTransport(httpx.HTTPTransport):
    """httpx's transport over a pool whose connections respect `deadline`."""

    def __init__(self) -> None:
        """Make an empty pool that ignores the environment's proxies."""
        super().__init__(verify=tls_context(), trust_env=False)
        # httpx has no parameter for the network backend of its pool; httpcore does.
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls_context(),
            max_connections=None,  # the number of threads is the limit, and a full pool is slow
            max_keepalive_connections=20,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=_DeadlineBackend(),
        )


def _remaining(timeout: float | None) -> float | None:
    end = _deadline.get()
    if end is None:
        return timeout
    remaining = end - time.monotonic()
    if remaining <= 0:
        raise httpcore.ReadTimeout("deadline")
    return remaining if timeout is None else min(timeout, remaining)


class _DeadlineBackend(httpcore.NetworkBackend):
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
        stream = self._inner.connect_tcp(host, port, _remaining(timeout), local_address, socket_options)
        return _DeadlineStream(stream)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _remaining(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITE_CHUNK_BYTES):
            self._inner.write(buffer[start : start + _WRITE_CHUNK_BYTES], _remaining(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, _remaining(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
