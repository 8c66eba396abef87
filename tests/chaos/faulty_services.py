"""Small HTTP servers on the loopback that stand for a dependency, or stand in front of one and spoil it."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

Answer = tuple[int, str, bytes]
"""Status, content type, body."""

JSON_TYPE = "application/json"
HTML = b"<html><body><h1>Please stand by</h1></body></html>"


class Hangup(Exception):
    """The connection is closed without an answer."""


def as_json(content: Any, status: int = 200) -> Answer:
    """A JSON answer."""
    return status, JSON_TYPE, json.dumps(content).encode()


class Server(ThreadingHTTPServer):
    """Serves `answer` until it is closed; hanging answers end then."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, answer: Callable[["Handler", bytes], Answer], port: int = 0) -> None:
        self.answer = answer
        super().__init__(("127.0.0.1", port), Handler)
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[tuple[float, str, str]] = []
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no news."""

    def close(self) -> None:
        """Nobody listens from here on."""
        self.shutdown()
        self.server_close()
        self._thread.join(5)


class Handler(BaseHTTPRequestHandler):
    """One connection a request, so that a change of mind of the server holds for the next one."""

    server: Server
    protocol_version = "HTTP/1.1"
    methods: ClassVar[tuple[str, ...]] = ("GET", "POST", "PUT", "PATCH", "DELETE")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.received.append((time.time(), self.command, self.path))
        self.close_connection = True
        with contextlib.suppress(Hangup, OSError):
            status, kind, content = self.server.answer(self, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Silent."""


class FaultyProxy:
    """Stands before `target`; `fault` is what becomes of requests, None: they are passed on."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self.fault: str | None = None
        self.only: Callable[[str, str], bool] = lambda _method, _path: True
        self.delay = 0.0
        self.delayed = self.only
        self._wake_up = threading.Event()
        self.server = Server(self._answer)
        self.url = self.server.url

    @contextmanager
    def spoilt(self, fault: str, only: Callable[[str, str], bool] | None = None) -> Iterator[None]:
        """`fault` is one of 500, 502, html, nothing, hang, lost (done, but the answer does not arrive)."""
        before = self.only
        self.fault, self.only = fault, only or before
        try:
            yield
        finally:
            self.fault, self.only = None, before
            self._wake_up.set()
            self._wake_up = threading.Event()

    @contextmanager
    def slowed(self, seconds: float, only: Callable[[str, str], bool]) -> Iterator[None]:
        """Answers to some requests take that much longer."""
        self.delay, self.delayed = seconds, only
        try:
            yield
        finally:
            self.delay = 0.0

    def close(self) -> None:
        """End it."""
        self._wake_up.set()
        self.server.close()

    def _answer(self, request: Handler, body: bytes) -> Answer:
        if self.delay and self.delayed(request.command, request.path):
            self._wake_up.wait(self.delay)
        fault = self.fault if self.only(request.command, request.path) else None
        match fault:
            case None:
                return self._passed_on(request, body)
            case "500" | "502":
                return as_json({"detail": "out of order"}, int(fault))
            case "html":
                return 200, "text/html", HTML
            case "lost":
                self._passed_on(request, body)
                raise Hangup
            case "hang":
                self._wake_up.wait(60)
                raise Hangup
        raise Hangup

    def _passed_on(self, request: Handler, body: bytes) -> Answer:
        line = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=30)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        try:
            line.request(request.command, request.path, body or None, headers)
            answer = line.getresponse()
            content = answer.read()
            return answer.status, answer.getheader("Content-Type", JSON_TYPE), content
        except (OSError, http.client.HTTPException):
            raise Hangup from None
        finally:
            line.close()


class Agent:
    """Has room for everything, unless it hangs."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self._relief = threading.Event()
        self.server = Server(self._answer)
        self.url = self.server.url

    def relieve(self) -> None:
        """Hang no longer; that was hanging is hung up on."""
        self.hangs.clear()
        self._relief.set()
        self._relief = threading.Event()

    def restart(self, after: float) -> None:
        """Nobody listens for so long; then it is there again, on the same port."""
        port = self.server.port
        self.server.close()
        time.sleep(after)
        self.server = Server(self._answer, port)

    def close(self) -> None:
        """End it."""
        self._relief.set()
        self.server.close()

    def _answer(self, _request: Handler, _body: bytes) -> Answer:
        if self.hangs.is_set():
            self._relief.wait(60)
            raise Hangup
        return as_json({"allowed": True, "reasons": []})


def application() -> Server:
    """The applications on Serve: each says what it is reported."""

    def answer(_request: Handler, body: bytes) -> Answer:
        said = json.loads(body or b"{}").get("text", "")
        return as_json({"said": said, "by": "1.0.0"})

    return Server(answer)
