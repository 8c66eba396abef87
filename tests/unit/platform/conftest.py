"""A real HTTP server on this machine whose answers a test writes down beforehand."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from worker.platform import RetryPolicy, redaction

Behaviour = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    script: list[Behaviour] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def answers(
        self,
        value: Any = None,
        status: int = 200,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> "Service":
        """The next answer; the last one written down is repeated for ever."""
        content = json.dumps(value).encode() if body is None else body

        def behave(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, text in (headers or {}).items():
                handler.send_header(name, text)
            if status != 204:
                handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            if status != 204:
                handler.wfile.write(content)

        return self.behaves(behave)

    def writes(self, *pieces: bytes) -> "Service":
        """The next answer is these bytes as they are; then the server hangs up."""

        def behave(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            handler.wfile.write(b"".join(pieces))

        return self.behaves(behave)

    def drips(self, start: bytes, piece: bytes = b"x") -> "Service":
        """The next answer is `start`, then a piece every few milliseconds until nobody listens any more."""

        def behave(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            handler.wfile.write(start)
            while not self.ended.wait(0.02):
                handler.wfile.write(piece)

        return self.behaves(behave)

    def is_silent(self) -> "Service":
        """The next request is never answered."""
        return self.behaves(lambda _: self.ended.wait(60) and None)

    def behaves(self, behaviour: Behaviour) -> "Service":
        self.script.append(behaviour)
        return self


@pytest.fixture
def service() -> Iterator[Service]:
    state = Service()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, body, self.client_address[1])
                state.seen.append(seen)
                behaviour = state.script.pop(0) if len(state.script) > 1 else state.script[0]
            try:
                behaviour(self)
            except OSError:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            # A client that hangs up early is what some tests are about.
            pass

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    state.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_secrets_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of one test are not known in the next."""
    monkeypatch.setattr(redaction, "_registry", redaction.SecretRegistry())


@pytest.fixture
def hasty() -> RetryPolicy:
    """Retries without the waiting."""
    return RetryPolicy(base=0.001, cap=0.002, max_retry_after=0.01)
