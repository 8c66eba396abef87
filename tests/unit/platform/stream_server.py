"""An agent's log on a real wire, both protocols on one port, written down by a test down to the byte."""

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Wire:
    """One connection of a client, after its request: what a script may send over it."""

    def __init__(self, handler: BaseHTTPRequestHandler, is_websocket: bool) -> None:
        self._handler = handler
        self.is_websocket = is_websocket

    def accept(self, content_type: str = "text/plain") -> "Wire":
        handler = self._handler
        if self.is_websocket:
            handler.send_response(101)
            key = handler.headers["Sec-WebSocket-Key"].encode()
            answer = {"Upgrade": "websocket", "Connection": "Upgrade"}
            answer["Sec-WebSocket-Accept"] = base64.b64encode(hashlib.sha1(key + MAGIC).digest()).decode()
        else:
            handler.send_response(200)
            answer = {"Transfer-Encoding": "chunked", "Content-Type": content_type}
        for name, value in answer.items():
            handler.send_header(name, value)
        handler.end_headers()
        return self

    def reject(self, status: int, body: bytes = b"", **headers: str) -> None:
        self._handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def piece(self, data: str | bytes) -> "Wire":
        """A chunk, or a message, as it is."""
        data = data.encode() if isinstance(data, str) else data
        if self.is_websocket:
            return self._frame(0x1, data)
        return self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def line(self, text: str) -> "Wire":
        return self.piece(text if self.is_websocket else f"{text}\n")

    def event(self, **event: object) -> "Wire":
        text = json.dumps(event)
        return self.piece(text if self.is_websocket else f"data: {text}\n\n")

    def complete(self) -> "Wire":
        return self.event(type="complete").finish()

    def finish(self, code: int = 1000, reason: str = "") -> "Wire":
        """An end in order."""
        if self.is_websocket:
            return self._frame(0x8, struct.pack("!H", code) + reason.encode())
        return self._write(b"0\r\n\r\n")

    def wait_until_left(self) -> None:
        """Return once the client has gone, or said that it goes."""
        with contextlib.suppress(OSError):
            self._handler.connection.recv(1)

    def _frame(self, kind: int, data: bytes) -> "Wire":
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x80 | kind, size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | kind, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | kind, 127, size)
        return self._write(head + data)

    def _write(self, data: bytes) -> "Wire":
        self._handler.wfile.write(data)
        return self


Script = Callable[[Wire], object]


@dataclass
class LogServer:
    """`script` speaks to every client; `left` counts the connections that are over."""

    script: Script
    url: str = ""
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    left: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def one_has_left(self, seconds: float = 5) -> bool:
        return self.left.acquire(timeout=seconds)


@contextlib.contextmanager
def log_server(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[LogServer]:
    """Over `tls` when given; the connection is made when its thread reads the request."""
    state = LogServer(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            state.paths.append(self.path)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            try:
                state.script(Wire(self, "Upgrade" in self.headers.get("Connection", "")))
            except OSError:
                pass
            finally:
                state.left.release()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        # A small buffer in the kernel, so that a slow reader is felt soon.
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        state.url = f"http{'s' * (tls is not None)}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
