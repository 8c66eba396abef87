"""What sync and async clients share: deadlines, timeouts, headers, limits of an answer, failures."""

import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import aiohttp
import httpcore
import httpx

from worker.platform.errors import (
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    MalformedResponseError,
)
from worker.platform.responses import HttpResponse

KEEPALIVE_SECONDS = 1.5
"""Below the 2 s after which gunicorn hangs up: a call that must not be repeated is to find its line alive."""

_WRITE_CHUNK_BYTES = 64 * 1024  # bytes written between two looks at the clock
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
            network_backend=_DeadlineBackend(),
        )


def _remaining(timeout: float | None) -> float | None:
    end = _deadline.get()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("deadline")
    return left if timeout is None else min(timeout, left)


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


MB = 1024 * 1024
MAX_RESPONSE_BYTES = 16 * MB
MAX_ERROR_BYTES = 64 * 1024  # of an error's body, the rest is not read
CLIENT_CLOSED = "the client was closed: make a new one"
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
_DISCONNECTED = re.compile("disconnected|closed connection")
# In this order: a failed certificate is an SSLError, and all of them are OSErrors.
_REASONS: dict[type[BaseException], str] = {
    ssl.SSLCertVerificationError: "the service's certificate is not trusted (see SSL_CERT_FILE)",
    ssl.SSLError: "the service does not speak TLS as it should",
    socket.gaierror: "the service's host name is unknown",
    ConnectionRefusedError: "nobody listens at the service's address",
}
_DEFAULT_TIMEOUTS = {"connect": 5.0, "read": 15.0}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, to wait for the next bytes, and for one attempt as a whole."""

    connect: float
    read: float
    total: float

    @classmethod
    def from_argument(cls, timeout: Mapping[str, float] | None) -> "Timeouts":
        """From the client's argument: a dict of `connect`, `read` and, rarely, `total`."""
        given = {**_DEFAULT_TIMEOUTS, **(timeout or {})}
        given.setdefault("total", given["connect"] + 2 * given["read"])
        if set(given) != {"connect", "read", "total"} or not all(each > 0 for each in given.values()):
            raise ValueError("timeout is a dict of 'connect', 'read' and 'total', in seconds above 0")
        return cls(**given)

    def to_httpx(self) -> httpx.Timeout:
        """The part of it that httpx can keep by itself."""
        return httpx.Timeout(connect=self.connect, read=self.read, write=self.read, pool=None)


def default_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers of every request. A value that cannot be sent is refused here, and not shown."""
    for name, value in (headers or {}).items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the value for the header {name} has characters that a header cannot hold")
    return {
        "Accept": "application/json, */*;q=0.5",  # a log comes as text
        # What httpx could also unpack (brotli, zstd) may fill the memory from a small answer.
        "Accept-Encoding": "gzip, deflate",
        "User-Agent": "synapse-worker",
        **(headers or {}),
    }


def rejecting_cookie_jar() -> CookieJar:
    """A jar that takes nothing: a session cookie would outlive the token that it came with."""
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))


class ResponseReader:
    """Collects one answer and holds it to its limits."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        """`headers` are found in whatever case."""
        self._status, self._headers = status, headers
        self._body = bytearray()
        self._is_error = not 200 <= status < 300
        declared = headers.get("content-length", "")
        if headers.get("content-encoding", "").strip().lower() not in _ENCODINGS:
            raise MalformedResponseError("malformed answer: packed in a way that was not asked for")
        if declared.isdecimal() and len(declared) < 20 and not self._is_error:
            self._check_size(int(declared))

    def feed(self, chunk: bytes) -> bool:
        """Take what came; False when no more is wanted."""
        self._body += chunk
        if self._is_error:
            return len(self._body) < MAX_ERROR_BYTES
        self._check_size(len(self._body))
        return True

    def recover(self, failure: ClientError) -> HttpResponse:
        """The answer after its body failed: an error says enough by its status, anything else is lost."""
        if self._is_error:
            return self.response()
        if isinstance(failure, ClientConnectionError):
            raise MalformedResponseError("malformed answer: cut off", cut_off=True)
        raise failure

    def response(self) -> HttpResponse:
        """What was collected."""
        headers = {name.lower(): value for name, value in self._headers.items()}
        return HttpResponse(self._status, headers, bytes(self._body))

    def _check_size(self, size: int) -> None:
        if size > MAX_RESPONSE_BYTES:
            raise MalformedResponseError(f"malformed answer: larger than {MAX_RESPONSE_BYTES // MB} MB")


def recover_response(error: Exception, reader: ResponseReader | None) -> HttpResponse:
    """What is left of an exchange that `error` ended: an answer that is an error anyway, else raises.

    To be called outside of the except block: `error` knows the URL and is not to become a context.
    """
    failure = transport_error(error)
    if reader is None:
        raise failure
    return reader.recover(failure)


def transport_error(error: Exception) -> ClientError:
    """The client error for a failure below HTTP, with nothing of `error`: that one knows URL and headers."""
    if _is_timeout(error):
        return ClientTimeoutError("408 Request Timeout: the service did not answer in time", 408)
    if isinstance(error, httpx.DecodingError):
        return MalformedResponseError("malformed answer: it cannot be unpacked")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.InvalidURL):
        return ClientError("the request cannot be sent", 400)
    if isinstance(error, aiohttp.ClientResponseError):
        return MalformedResponseError("malformed answer: not HTTP")
    if isinstance(error, httpx.RemoteProtocolError) and _DISCONNECTED.search(str(error)) is None:
        return MalformedResponseError("malformed answer: not HTTP")
    return ClientConnectionError(f"503 Service Unavailable: {_reason(error)}", 503)


def _reason(error: BaseException) -> str:
    """Why there is no connection, as an operator has to know it; found in the chain of causes."""
    link: BaseException | None = error
    for _ in range(8):
        for kind, reason in _REASONS.items():
            if isinstance(link, kind):
                return reason
        link = link and (link.__cause__ or link.__context__)
    return "the connection was lost"


def _is_timeout(error: Exception) -> bool:
    # The aiohttp transport calls every lost or refused connection a ConnectTimeout; its cause tells.
    if isinstance(error.__cause__, aiohttp.ClientError):
        return isinstance(error.__cause__, TimeoutError)
    return isinstance(error, TimeoutError | httpx.TimeoutException)
