"""Below the requests: deadlines, timeouts, TLS, headers, size limits, and connection failures as errors."""

import re
import socket
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import aiohttp
import httpx

from worker.platform.errors import (
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    MalformedResponseError,
    ResponseTooLargeError,
)
from worker.platform.responses import HttpResponse

MB = 1024 * 1024
DEFAULT_MAX_RESPONSE_MB = 16
_max_response_bytes = DEFAULT_MAX_RESPONSE_MB * MB
MAX_ERROR_BYTES = 64 * 1024
"""Bytes of an error's body that are read."""


def limit_responses(megabytes: int) -> None:
    """Set how large a body of all clients of this process may be.

    Args:
        megabytes: The largest body, unpacked.
    """
    global _max_response_bytes
    _max_response_bytes = megabytes * MB


CLIENT_CLOSED = "the client was closed: make a new one"
_ENCODINGS = frozenset({"", "identity", "gzip", "deflate"})
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
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
    """Timeouts of one attempt, in seconds.

    Attributes:
        connect: To connect.
        read: To wait for the next bytes, and to write.
        total: For the whole attempt.
    """

    connect: float
    read: float
    total: float

    @classmethod
    def from_argument(cls, timeout: Mapping[str, float] | None) -> "Timeouts":
        """Check a client's argument and fill in the defaults.

        Args:
            timeout: `connect` (default 5), `read` (15) and `total` (`connect` plus twice `read`).

        Returns:
            The timeouts.

        Raises:
            ValueError: Another key, or a value that is not above 0.
        """
        seconds = {**_DEFAULT_TIMEOUTS, **(timeout or {})}
        seconds.setdefault("total", seconds["connect"] + 2 * seconds["read"])
        if set(seconds) != {"connect", "read", "total"} or not all(each > 0 for each in seconds.values()):
            raise ValueError("timeout is a dict of 'connect', 'read' and 'total', in seconds above 0")
        return cls(**seconds)

    def to_httpx(self) -> httpx.Timeout:
        """Make httpx's timeouts, which know no total.

        Returns:
            The timeouts of single connects, reads and writes.
        """
        return httpx.Timeout(connect=self.connect, read=self.read, write=self.read, pool=None)


def default_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Complete the headers of every request.

    Args:
        headers: The client's own, such as its token.

    Returns:
        They and the standard ones.

    Raises:
        ValueError: A value has characters that a header cannot hold; the message does not show it.
    """
    for name, value in (headers or {}).items():
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the value for the header {name} has characters that a header cannot hold")
    return {
        "Accept": "application/json, */*;q=0.5",  # a log is text
        # Not brotli or zstd, which httpx also decompresses: a small response could fill the memory.
        "Accept-Encoding": "gzip, deflate",
        "User-Agent": "synapse-worker",
        **(headers or {}),
    }


def rejecting_cookie_jar() -> CookieJar:
    """Make a cookie jar that stays empty: a session cookie would outlive the token that it was issued for.

    Returns:
        The jar.
    """
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))


class Unpacker:
    """Decompresses the parts of a body, none of them to much more than a body may have."""

    def __init__(self, encoding: str) -> None:
        """Prepare for one body.

        Args:
            encoding: The header `Content-Encoding`, one that `ResponseReader` accepts.
        """
        self._is_packed = encoding.strip().lower() in ("gzip", "deflate")
        self._stream: Any = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._is_first = True

    def feed(self, chunk: bytes) -> bytes:
        """Decompress a part.

        Args:
            chunk: As it was received.

        Returns:
            What it holds, at most one byte more than a body may have.

        Raises:
            MalformedResponseError: It cannot be decompressed.
        """
        if not self._is_packed:
            return chunk
        with suppress(zlib.error):
            return self._decompress(chunk)
        if self._is_first:
            # Some servers leave out the header that deflate should have.
            self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
            with suppress(zlib.error):
                return self._decompress(chunk)
        raise MalformedResponseError("malformed answer: it cannot be unpacked")

    def _decompress(self, chunk: bytes) -> bytes:
        unpacked: bytes = self._stream.decompress(chunk, _max_response_bytes + 1)
        self._is_first = False
        return unpacked


class ResponseReader:
    """Collects the body of one response within the size limit."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        """Check the headers.

        Args:
            status: The HTTP status.
            headers: A mapping that ignores case.

        Raises:
            MalformedResponseError: The compression was not asked for.
            ResponseTooLargeError: The body is declared to be larger than the limit.
        """
        self._status, self._headers = status, headers
        self._body = bytearray()
        self._is_error = not 200 <= status < 300
        declared = headers.get("content-length", "")
        if headers.get("content-encoding", "").strip().lower() not in _ENCODINGS:
            raise MalformedResponseError("malformed answer: packed in a way that was not asked for")
        if declared.isdecimal() and len(declared) < 20 and not self._is_error:
            self._check_size(int(declared), is_whole=True)

    def feed(self, chunk: bytes) -> bool:
        """Add a part of the body.

        Args:
            chunk: Decompressed bytes.

        Returns:
            False if the rest is not needed.

        Raises:
            ResponseTooLargeError: The body is larger than the limit.
        """
        self._body += chunk
        if self._is_error:
            return len(self._body) < MAX_ERROR_BYTES
        self._check_size(len(self._body))
        return True

    def recover(self, failure: ClientError) -> HttpResponse:
        """Make the response although its body could not be read to the end.

        Args:
            failure: What the connection failed with.

        Returns:
            The response if it is an error, because its status says enough.

        Raises:
            MalformedResponseError: The connection was lost in the middle of a successful response.
            ClientError: The given failure, if it is another one.
        """
        if self._is_error:
            return self.response()
        if isinstance(failure, ClientConnectionError):
            raise MalformedResponseError("malformed answer: cut off", cut_off=True)
        raise failure

    def response(self) -> HttpResponse:
        """Make the response of what was collected.

        Returns:
            The response, with the names of its headers in lower case.
        """
        headers = {name.lower(): value for name, value in self._headers.items()}
        return HttpResponse(self._status, headers, bytes(self._body))

    def _check_size(self, size: int, is_whole: bool = False) -> None:
        if size > _max_response_bytes:
            limit = f"larger than {_max_response_bytes // MB} MB (WORKER_MAX_ANSWER_MB)"
            what = f"its {size / MB:.1f} MB are {limit}" if is_whole else limit
            raise ResponseTooLargeError(f"malformed answer: {what}")


def recover_response(error: Exception, reader: ResponseReader | None) -> HttpResponse:
    """Make a response, or raise the client error, after an exchange failed.

    Call it outside of the except block: the caught error contains the URL and must not become a context.

    Args:
        error: What httpx, aiohttp or the operating system raised.
        reader: What was read of the response, if its headers were received.

    Returns:
        The response if it is an error anyway.

    Raises:
        ClientError: For any other failure.
    """
    failure = transport_error(error)
    if reader is None:
        raise failure
    return reader.recover(failure)


_CANNOT_BE_SENT = (
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
    aiohttp.InvalidURL,
)


def transport_error(error: Exception) -> ClientError:
    """Make the client error for a failure below HTTP.

    Args:
        error: What httpx, aiohttp or the operating system raised.

    Returns:
        The error, not raised. It has nothing of the original, which contains the URL and headers.
    """
    if _is_timeout(error):
        return ClientTimeoutError("408 Request Timeout: the service did not answer in time", 408)
    if isinstance(error, httpx.DecodingError):
        return MalformedResponseError("malformed answer: it cannot be unpacked")
    if isinstance(
        error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.InvalidURL | aiohttp.InvalidURL
    ):
        return ClientError("the request cannot be sent", 400)
    if isinstance(error, aiohttp.ClientResponseError):
        return MalformedResponseError("malformed answer: not HTTP")
    if isinstance(error, httpx.RemoteProtocolError) and _DISCONNECTED.search(str(error)) is None:
        return MalformedResponseError("malformed answer: not HTTP")
    return ClientConnectionError(f"503 Service Unavailable: {_reason(error)}", 503)


def _reason(error: BaseException) -> str:
    """The reason of a failed connection in an operator's words, found in the chain of causes."""
    link: BaseException | None = error
    for _ in range(8):
        for kind, reason in _REASONS.items():
            if isinstance(link, kind):
                return reason
        link = link and (link.__cause__ or link.__context__)
    return "the connection was lost"


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, TimeoutError | httpx.TimeoutException)
