"""A server with the agent's log API, for tests and benchmarks. Its jobs only print.

A job's id says what it prints: `{lines}-{lines a second}-{new lines a connection}-{status}-{name}`, where 0
means all lines at once, and all lines in one connection. The second connection to `5000-100-50-succeeded-a`
is aborted after 100 lines. Line `i` is `{i} {time at which it was due}`. A job starts with the first request
for it; its start is kept in FOLDER, so that the server can be killed and started again.

One timer writes the lines that are due straight to the sockets, because the server must use little CPU while
the relay is measured.

Run by `python log_server.py PORT FOLDER`.
"""

import asyncio
import base64
import hashlib
import heapq
import itertools
import json
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

TICK_SECONDS = 0.002
MAX_LINES_PER_WRITE = 500
MAX_UNREAD_BYTES = 256 * 1024
"""A connection with so many unread bytes gets no more lines until its client has read."""

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


@dataclass(frozen=True)
class Job:
    """What a job prints, and since when."""

    lines: int
    rate: float
    lines_per_connection: int
    status_at_end: str
    start: float

    @classmethod
    def of(cls, name: str, folder: Path) -> "Job":
        lines, rate, lines_per_connection, status_at_end, _ = name.split("-", 4)
        started_file = folder / name
        if not started_file.exists():
            started_file.write_text(str(time.time()))
        return cls(
            int(lines),
            float(rate),
            int(lines_per_connection),
            status_at_end.upper(),
            float(started_file.read_text()),
        )

    def printed(self, now: float) -> int:
        """Number of lines printed so far."""
        return min(self.lines, int((now - self.start) * self.rate)) if self.rate else self.lines

    def due(self, number: int) -> float:
        """When that line is printed."""
        return self.start + (number + 1) / self.rate if self.rate else self.start

    def line(self, number: int) -> str:
        """A line of the log, the same whenever it is asked for."""
        return f"{number} {self.due(number):.6f} epoch=3 loss=0.25 한국어 \x1b[32mok\x1b[0m"

    def status(self) -> str:
        """Ray's status of the job."""
        return self.status_at_end if self.printed(time.time()) == self.lines else "RUNNING"

    def max_lines(self, connection: int) -> int:
        """Number of lines after which the connection ends; it is aborted when the job prints more."""
        return (
            min(self.lines, self.lines_per_connection * connection)
            if self.lines_per_connection
            else self.lines
        )


class LogConnection:
    """One connection on which a client reads a job's log."""

    def __init__(self, job: Job, max_lines: int, transport: asyncio.Transport) -> None:
        self.job, self.max_lines, self.transport = job, max_lines, transport
        self.lines_written = 0

    def due(self) -> float:
        """When the next line is due."""
        return self.job.due(self.lines_written)

    def write(self, now: float) -> bool:
        """Write the lines that are due; False when the connection has ended."""
        until = min(self.job.printed(now), self.max_lines)
        while self.lines_written < until and not self._is_blocked():
            lines = range(self.lines_written, min(until, self.lines_written + MAX_LINES_PER_WRITE))
            self.lines_written = lines.stop
            self.transport.write(self.encoded([self.job.line(number) for number in lines]))
        if self.transport.is_closing():
            return False
        if self.lines_written < self.max_lines:
            return True
        if self.max_lines < self.job.lines:
            self.transport.abort()
        else:
            self.transport.write(self.end_of_log())
            self.transport.close()
        return False

    def _is_blocked(self) -> bool:
        return self.transport.is_closing() or self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES

    def encoded(self, lines: list[str]) -> bytes:
        raise NotImplementedError

    def end_of_log(self) -> bytes:
        raise NotImplementedError


class StreamConnection(LogConnection):
    """`GET jobs/{id}/logs/stream/`"""

    def encoded(self, lines: list[str]) -> bytes:
        return chunk("".join(f"{line}\n" for line in lines).encode())

    def end_of_log(self) -> bytes:
        return chunk(b'data: {"type": "complete"}\n\n') + b"0\r\n\r\n"


class WebsocketConnection(LogConnection):
    """Websocket on `jobs/{id}/logs/`"""

    def encoded(self, lines: list[str]) -> bytes:
        return b"".join(frame(TEXT, event("log", line)) for line in lines)

    def end_of_log(self) -> bytes:
        return frame(TEXT, b'{"type": "complete"}') + frame(CLOSE, struct.pack("!H", 1000))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(kind: str, message: str) -> bytes:
    return json.dumps({"type": kind, "message": message}).encode()


def frame(kind: int, data: bytes) -> bytes:
    size = len(data)
    head = (
        struct.pack("!BB", 0x80 | kind, size) if size < 126 else struct.pack("!BBH", 0x80 | kind, 126, size)
    )
    return head + data


class Timer:
    """Writes to each connection when its next line is due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, LogConnection]] = []
        self._numbers = itertools.count()

    def add(self, connection: LogConnection) -> None:
        heapq.heappush(self._due, (connection.due(), next(self._numbers), connection))

    async def run(self) -> None:
        while True:
            now = time.time()
            blocked = []
            while self._due and self._due[0][0] <= now:
                _, _, connection = heapq.heappop(self._due)
                if connection.write(now):
                    blocked.append(connection) if connection.due() <= now else self.add(connection)
            for connection in blocked:
                self.add(connection)
            await asyncio.sleep(TICK_SECONDS)


class RequestProtocol(asyncio.Protocol):
    """One request. After it, a websocket client sends only pings and the close frame."""

    def __init__(self, folder: Path, connections: Counter[str], timer: Timer) -> None:
        self._folder, self._connections, self._timer = folder, connections, timer
        self._received = b""
        self._is_websocket = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._is_websocket:
            self._read_frames()
        elif b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            request, *fields = head.decode("latin-1").split("\r\n")
            headers = dict(field.lower().split(": ", 1) for field in fields)
            key = [
                field.split(": ", 1)[1] for field in fields if field.lower().startswith("sec-websocket-key:")
            ]
            self._is_websocket = headers.get("upgrade") == "websocket"
            self._respond(request.split(" ")[1].strip("/").split("/"), key[0] if key else "")

    def _respond(self, path: list[str], key: str) -> None:
        match path:
            case ["health"]:
                self._send_json({})
            case ["jobs", name]:
                self._send_json({"id": name, "status": Job.of(name, self._folder).status()})
            case ["jobs", name, "logs", "stream"]:
                self._send_head("200 OK", "Content-Type: text/plain", "Transfer-Encoding: chunked")
                self._start_log(StreamConnection, name)
            case ["jobs", name, "logs"]:
                accepted = base64.b64encode(hashlib.sha1(key.encode() + MAGIC).digest()).decode()
                upgrade = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accepted}")
                self._send_head("101 Switching Protocols", *upgrade)
                self._start_log(WebsocketConnection, name)
            case _:
                self._send_head("404 Not Found", "Content-Length: 0", "Connection: close")
                self._transport.close()

    def _start_log(self, kind: type[LogConnection], name: str) -> None:
        self._connections[name] += 1
        job = Job.of(name, self._folder)
        self._timer.add(kind(job, job.max_lines(self._connections[name]), self._transport))

    def _send_json(self, value: dict[str, str]) -> None:
        body = json.dumps(value).encode()
        length = f"Content-Length: {len(body)}"
        self._send_head("200 OK", "Content-Type: application/json", length, "Connection: close")
        self._transport.write(body)
        self._transport.close()

    def _send_head(self, status: str, *fields: str) -> None:
        self._transport.write("\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode())

    def _read_frames(self) -> None:
        # A client's frames are short, and they are masked.
        while len(self._received) >= 6 and len(self._received) >= 6 + (self._received[1] & 0x7F):
            kind, frame_end = self._received[0] & 0xF, 6 + (self._received[1] & 0x7F)
            mask, data = self._received[2:6], self._received[6:frame_end]
            self._received = self._received[frame_end:]
            data = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
            if kind == PING:
                self._transport.write(frame(PONG, data))
            elif kind == CLOSE and not self._transport.is_closing():
                self._transport.write(frame(CLOSE, data))
                self._transport.close()


async def serve(port: int, folder: Path) -> None:
    """Serve until killed."""
    timer, connections = Timer(), Counter[str]()
    loop = asyncio.get_running_loop()
    await loop.create_server(
        lambda: RequestProtocol(folder, connections, timer), "127.0.0.1", port, backlog=1024
    )
    await timer.run()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
