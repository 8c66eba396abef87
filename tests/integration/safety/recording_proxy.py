"""A proxy between worker and backend that records every request and responds itself where a test wants it."""

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}
"""Headers that are not forwarded."""


@dataclass
class Request:
    """A received request; times are of this process's clock, and `ended` is 0 until it is answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    began: float
    ended: float = 0.0
    status: int = 0


@dataclass(frozen=True)
class Response:
    """A response in place of the backend's.

    `length`: the body is repeated or cut to it. `endless`: the body is repeated until the proxy closes.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    endless: bool = False
    length: int | None = None


Reaction = Callable[[Request], Response | None]
"""From a request to the response in place of the backend's; None forwards the request."""


class RecordingProxy:
    """An HTTP server in threads of this process."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._interceptors: list[tuple[str, re.Pattern[str], Reaction]] = []
        self.received: list[Request] = []
        self._closed = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError, http.client.HTTPException):
                    self.close_connection = True

            def _any(self) -> None:
                proxy._serve(self)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _any

            def log_message(self, format: str, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @contextmanager
    def intercept(self, method: str, path: str, reaction: Reaction | Response) -> Iterator[None]:
        """During the block, apply `reaction` to requests of `method` whose path matches from its start."""
        react = reaction if callable(reaction) else (lambda _request: reaction)
        interceptor = (method, re.compile(path), react)
        self._interceptors.insert(0, interceptor)
        try:
            yield
        finally:
            self._interceptors.remove(interceptor)

    @contextmanager
    def delay(self, method: str, path: str, seconds: float) -> Iterator[None]:
        """Forward such requests `seconds` later, or at the end of the block."""
        block_ended = threading.Event()

        def wait(_request: Request) -> None:
            block_ended.wait(seconds)

        with self.intercept(method, path, wait):
            try:
                yield
            finally:
                block_ended.set()

    def requests(self, method: str, path: str) -> list[Request]:
        """The requests of `method` received so far whose path starts with a match of `path`."""
        pattern = re.compile(path)
        return [
            request
            for request in list(self.received)
            if request.method == method and pattern.match(request.path)
        ]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        request = Request(handler.command, handler.path, dict(handler.headers), body, time.time())
        self.received.append(request)
        response = None
        for method, pattern, react in list(self._interceptors):
            if method == request.method and pattern.match(request.path):
                response = react(request)
                break
        response = response or self._forward(request)
        request.status = response.status
        try:
            self._send(handler, response)
        finally:
            request.ended = time.time()

    def _forward(self, request: Request) -> Response:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=30)
        try:
            headers = {
                name: value
                for name, value in request.headers.items()
                if name.lower() not in HOP_BY_HOP | {"host"}
            }
            connection.request(request.method, request.path, request.body or None, headers)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            return Response(response.status, response.read(), kept)
        finally:
            connection.close()

    def _send(self, handler: BaseHTTPRequestHandler, response: Response) -> None:
        handler.send_response(response.status)
        for name, value in response.headers.items():
            handler.send_header(name, value)
        if response.endless:
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            while not self._closed.is_set():
                handler.wfile.write(f"{len(response.body):x}\r\n".encode() + response.body + b"\r\n")
        length = len(response.body) if response.length is None else response.length
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for sent in range(0, length, max(len(response.body), 1)):
            handler.wfile.write(response.body[: length - sent])
