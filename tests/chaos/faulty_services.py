"""HTTP servers on the loopback address: a proxy that injects faults, a fake agent, and a fake application."""

import contextlib
import http.client
import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

from shared.webhooks import verify_event

Response = tuple[int, str, bytes]
"""Status, content type, body."""
Matcher = Callable[[str, str], bool]
"""Whether a request, by its method and path, is meant."""
Interceptor = Callable[["Handler", bytes], Response | None]
"""A response in place of the service's own; None to forward the request."""

JSON_TYPE = "application/json"
HTML = b"<html><body><h1>Please stand by</h1></body></html>"
MAX_HANG_SECONDS = 60


class ConnectionClosed(Exception):
    """The connection is closed without a response."""


def let_fault_last(seconds: float) -> None:
    """Sleep for as long as a fault lasts: the time itself is the fault, so no condition ends it."""
    time.sleep(seconds)


def json_response(content: Any, status: int = 200) -> Response:
    return status, JSON_TYPE, json.dumps(content).encode()


class Server(ThreadingHTTPServer):
    """Serves the responses of `respond` until it is closed."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, respond: Callable[["Handler", bytes], Response], port: int = 0) -> None:
        self.respond = respond
        super().__init__(("127.0.0.1", port), Handler)
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[tuple[float, str, str]] = []
        """Time, method and path of each request."""
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def handle_error(self, *_: Any) -> None:
        """Clients that disconnect are expected."""

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()
        self._thread.join(5)


class Handler(BaseHTTPRequestHandler):
    """Closes the connection after each response, so that the next request meets the current fault."""

    server: Server
    protocol_version = "HTTP/1.1"
    methods: ClassVar[tuple[str, ...]] = ("GET", "POST", "PUT", "PATCH", "DELETE")
    retry_after: float | None = None
    """The header `Retry-After` of the response."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.received.append((time.time(), self.command, self.path))
        self.close_connection = True
        with contextlib.suppress(ConnectionClosed, OSError):
            status, content_type, content = self.server.respond(self, body)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            if self.retry_after is not None:
                self.send_header("Retry-After", f"{self.retry_after:g}")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class FaultyProxy:
    """Forwards requests to `target`, except those that a fault is injected into."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._fault: str | None = None
        self._is_faulty: Matcher = lambda _method, _path: True
        self._delay_seconds = 0.0
        self._is_delayed = self._is_faulty
        self._fault_ended = threading.Event()
        self._interceptor: Interceptor = lambda _request, _body: None
        self.server = Server(self._respond)
        self.url = self.server.url

    @contextmanager
    def intercept(self, interceptor: Interceptor) -> Iterator[None]:
        """Let `interceptor` see each request first, for the duration of the block."""
        self._interceptor = interceptor
        try:
            yield
        finally:
            self._interceptor = lambda _request, _body: None

    @contextmanager
    def fault(self, fault: str, is_faulty: Matcher | None = None) -> Iterator[None]:
        """Inject a fault into requests, those that `is_faulty` matches or all, for the duration of the block.

        `fault`: 500, 502, html (status 200 with HTML), nothing (the connection is closed), hang, or lost (the
        request is forwarded, and the connection is closed in place of the response).
        """
        before = self._is_faulty
        self._fault, self._is_faulty = fault, is_faulty or before
        try:
            yield
        finally:
            self._fault, self._is_faulty = None, before
            self._end_hanging()

    @contextmanager
    def delay(self, seconds: float, is_delayed: Matcher) -> Iterator[None]:
        """Delay the responses to the requests that `is_delayed` matches, for the duration of the block."""
        self._delay_seconds, self._is_delayed = seconds, is_delayed
        try:
            yield
        finally:
            self._delay_seconds = 0.0

    def close(self) -> None:
        self._fault_ended.set()
        self.server.close()

    def _end_hanging(self) -> None:
        self._fault_ended.set()
        self._fault_ended = threading.Event()

    def _respond(self, request: Handler, body: bytes) -> Response:
        intercepted = self._interceptor(request, body)
        if intercepted is not None:
            return intercepted
        if self._delay_seconds and self._is_delayed(request.command, request.path):
            self._fault_ended.wait(self._delay_seconds)
        fault = self._fault if self._is_faulty(request.command, request.path) else None
        match fault:
            case None:
                return self._forward(request, body)
            case "500" | "502":
                return json_response({"detail": "out of order"}, int(fault))
            case "html":
                return 200, "text/html", HTML
            case "lost":
                self._forward(request, body)
                raise ConnectionClosed
            case "hang":
                self._fault_ended.wait(MAX_HANG_SECONDS)
                raise ConnectionClosed
        raise ConnectionClosed

    def _forward(self, request: Handler, body: bytes) -> Response:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=30)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        try:
            connection.request(request.command, request.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
            return response.status, response.getheader("Content-Type", JSON_TYPE), content
        except (OSError, http.client.HTTPException):
            raise ConnectionClosed from None
        finally:
            connection.close()


class CapacityAgent:
    """An agent whose cluster has capacity for everything; it can deny, hang, and restart."""

    def __init__(self) -> None:
        self._denials: dict[str, float] = {}
        self._hangs = threading.Event()
        self._hang_ended = threading.Event()
        self.server = Server(self._respond)
        self.url = self.server.url

    @contextmanager
    def hang(self) -> Iterator[None]:
        """Leave requests without a response for the duration of the block; then close their connections."""
        self._hangs.set()
        try:
            yield
        finally:
            self._hangs.clear()
            self._hang_ended.set()
            self._hang_ended = threading.Event()

    def deny(self, app_name: str, times: float = math.inf) -> None:
        """Have no capacity for this application when asked the next `times`; 0 ends that."""
        self._denials[app_name] = times

    def restart(self, seconds_down: float) -> None:
        """Reject connections for `seconds_down`, then listen on the same port again."""
        port = self.server.port
        self.server.close()
        let_fault_last(seconds_down)
        self.server = Server(self._respond, port)

    def close(self) -> None:
        self._hang_ended.set()
        self.server.close()

    def _respond(self, _request: Handler, body: bytes) -> Response:
        if self._hangs.is_set():
            self._hang_ended.wait(MAX_HANG_SECONDS)
            raise ConnectionClosed
        asked = json.loads(body or b"{}").get("metadata", {}).get("plugin_code")
        if self._denials.get(asked, 0) > 0:
            self._denials[asked] -= 1
            return json_response({"allowed": False, "reasons": ["insufficient_cpu"]})
        return json_response({"allowed": True, "reasons": []})


class WebhookReceiver:
    """Takes every event and verifies its signature."""

    SECRET = "whsec_" + "c2VjcmV0" * 5

    def __init__(self) -> None:
        self._events: defaultdict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        self.server = Server(self._respond)
        self.settings = {
            "WORKER_WEBHOOK_URL": f"{self.server.url}/hook",
            "WORKER_WEBHOOK_SECRET": self.SECRET,
        }

    def events(self, job: str) -> list[tuple[str, dict[str, Any]]]:
        """Id and content of each event of a job, in the order of their arrival."""
        return list(self._events[job])

    def close(self) -> None:
        self.server.close()

    def _respond(self, request: Handler, body: bytes) -> Response:
        event = verify_event(body, dict(request.headers), self.SECRET)
        self._events[event["data"]["job"]].append((request.headers["webhook-id"], event))
        return json_response({})


def start_echo_application() -> Server:
    """Stands for every application on Serve: responds with the text that it is sent."""

    def respond(_request: Handler, body: bytes) -> Response:
        text = json.loads(body or b"{}").get("text", "")
        return json_response({"said": text, "by": "1.0.0"})

    return Server(respond)
