"""Stands between worker and backend: remembers every request, spoils those that a test names."""

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

HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class Received:
    """A request; times are this process's clock, `ended` is 0 while it is being answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    began: float
    ended: float = 0.0
    status: int = 0


@dataclass(frozen=True)
class Answer:
    """What is answered in place of the backend; `endless` goes on with the body's last chunk for ever."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    endless: bool = False
    length: int | None = None


Reaction = Callable[[Received], Answer | None]


class Proxy:
    """An HTTP server in this process's threads."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._reactions: list[tuple[str, re.Pattern[str], Reaction]] = []
        self.received: list[Received] = []
        self.closing = threading.Event()
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
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @contextmanager
    def spoilt(self, method: str, path: str, reaction: Reaction | Answer) -> Iterator[None]:
        """While the block lasts, `reaction` meets requests of `method` whose path matches from its start."""
        react = reaction if callable(reaction) else (lambda _request: reaction)
        rule = (method, re.compile(path), react)
        self._reactions.insert(0, rule)
        try:
            yield
        finally:
            self._reactions.remove(rule)

    @contextmanager
    def slow(self, method: str, path: str, seconds: float) -> Iterator[None]:
        """Answers of such requests come `seconds` later, or when the block ends."""
        over = threading.Event()

        def wait(_request: Received) -> None:
            over.wait(seconds)

        with self.spoilt(method, path, wait):
            try:
                yield
            finally:
                over.set()

    def of(self, method: str, path: str) -> list[Received]:
        """What was received so far."""
        pattern = re.compile(path)
        return [each for each in list(self.received) if each.method == method and pattern.match(each.path)]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        received = Received(handler.command, handler.path, dict(handler.headers), body, time.time())
        self.received.append(received)
        answer = None
        for method, pattern, react in list(self._reactions):
            if method == received.method and pattern.match(received.path):
                answer = react(received)
                break
        answer = answer or self._forward(received)
        received.status = answer.status
        try:
            self._send(handler, answer)
        finally:
            received.ended = time.time()

    def _forward(self, received: Received) -> Answer:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=30)
        try:
            headers = {k: v for k, v in received.headers.items() if k.lower() not in HOP | {"host"}}
            connection.request(received.method, received.path, received.body or None, headers)
            response = connection.getresponse()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in HOP}
            return Answer(response.status, response.read(), kept)
        finally:
            connection.close()

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if answer.endless:
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            while not self.closing.is_set():
                handler.wfile.write(f"{len(answer.body):x}\r\n".encode() + answer.body + b"\r\n")
        length = len(answer.body) if answer.length is None else answer.length
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for sent in range(0, length, max(len(answer.body), 1)):
            handler.wfile.write(answer.body[: length - sent])
