"""A server that speaks the agent's API of logs, for tests and benchmarks: its jobs print, and nothing else.

A job's id says what it prints: `{lines}-{a second}-{new lines a connection}-{end}-{name}`, where 0 means all
at once and all of them. The second connection to `5000-100-50-succeeded-a` breaks off after 100 lines. Line
`i` is `{i} {time at which it was due}`. A job begins when it is first asked for; the folder that is given
remembers when, so that the server may be killed and started again.

It is to cost little beside the relay that is measured: one timer writes what is due, straight to the sockets.

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
AT_ONCE = 500
UNREAD_BYTES = 256 * 1024
"""A connection that has so much to read gets no more for the moment."""

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


@dataclass(frozen=True)
class Job:
    """What a job prints, and since when."""

    lines: int
    rate: float
    cut: int
    end: str
    start: float

    @classmethod
    def of(cls, name: str, folder: Path) -> "Job":
        lines, rate, cut, end, _ = name.split("-", 4)
        begun = folder / name
        if not begun.exists():
            begun.write_text(str(time.time()))
        return cls(int(lines), float(rate), int(cut), end.upper(), float(begun.read_text()))

    def printed(self, now: float) -> int:
        """Lines so far."""
        return min(self.lines, int((now - self.start) * self.rate)) if self.rate else self.lines

    def due(self, number: int) -> float:
        """When that line is printed."""
        return self.start + (number + 1) / self.rate if self.rate else self.start

    def line(self, number: int) -> str:
        """A line of the log, the same whenever it is asked for."""
        return f"{number} {self.due(number):.6f} epoch=3 loss=0.25 한국어 \x1b[32mok\x1b[0m"

    def status(self) -> str:
        """Ray's word for how it is."""
        return self.end if self.printed(time.time()) == self.lines else "RUNNING"

    def most(self, connection: int) -> int:
        """Lines after which the connection ends; it breaks off where these are not all."""
        return min(self.lines, self.cut * connection) if self.cut else self.lines


class Reader:
    """Whoever reads a job's log over one connection."""

    def __init__(self, job: Job, most: int, transport: asyncio.Transport) -> None:
        self.job, self.most, self.transport = job, most, transport
        self.given = 0

    def due(self) -> float:
        """When there is something to write next."""
        return self.job.due(self.given)

    def write(self, now: float) -> bool:
        """Write what is due; False when nothing more is to come."""
        until = min(self.job.printed(now), self.most)
        while self.given < until and not self._is_held_up():
            lines = range(self.given, min(until, self.given + AT_ONCE))
            self.given = lines.stop
            self.transport.write(self.packed([self.job.line(number) for number in lines]))
        if self.transport.is_closing():
            return False
        if self.given < self.most:
            return True
        if self.most < self.job.lines:
            self.transport.abort()
        else:
            self.transport.write(self.goodbye())
            self.transport.close()
        return False

    def _is_held_up(self) -> bool:
        return self.transport.is_closing() or self.transport.get_write_buffer_size() > UNREAD_BYTES

    def packed(self, lines: list[str]) -> bytes:
        raise NotImplementedError

    def goodbye(self) -> bytes:
        raise NotImplementedError


class StreamReader(Reader):
    """`GET jobs/{id}/logs/stream/`"""

    def packed(self, lines: list[str]) -> bytes:
        return chunk("".join(f"{line}\n" for line in lines).encode())

    def goodbye(self) -> bytes:
        return chunk(b'data: {"type": "complete"}\n\n') + b"0\r\n\r\n"


class WebsocketReader(Reader):
    """Websocket on `jobs/{id}/logs/`"""

    def packed(self, lines: list[str]) -> bytes:
        return b"".join(frame(TEXT, event("log", line)) for line in lines)

    def goodbye(self) -> bytes:
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
    """Has all readers written to when their next line is due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Reader]] = []
        self._numbers = itertools.count()

    def add(self, reader: Reader) -> None:
        heapq.heappush(self._due, (reader.due(), next(self._numbers), reader))

    async def run(self) -> None:
        while True:
            now = time.time()
            held_up = []
            while self._due and self._due[0][0] <= now:
                _, _, reader = heapq.heappop(self._due)
                if reader.write(now):
                    held_up.append(reader) if reader.due() <= now else self.add(reader)
            for reader in held_up:
                self.add(reader)
            await asyncio.sleep(TICK_SECONDS)


class Connection(asyncio.Protocol):
    """One request; beyond it a websocket only says that it lives or goes."""

    def __init__(self, folder: Path, connections: Counter[str], timer: Timer) -> None:
        self._folder, self._connections, self._timer = folder, connections, timer
        self._received = b""
        self._is_websocket = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._is_websocket:
            self._frames()
        elif b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            request, *fields = head.decode("latin-1").split("\r\n")
            headers = dict(field.lower().split(": ", 1) for field in fields)
            key = [
                field.split(": ", 1)[1] for field in fields if field.lower().startswith("sec-websocket-key:")
            ]
            self._is_websocket = headers.get("upgrade") == "websocket"
            self._answer(request.split(" ")[1].strip("/").split("/"), key[0] if key else "")

    def _answer(self, path: list[str], key: str) -> None:
        match path:
            case ["health"]:
                self._say({})
            case ["jobs", name]:
                self._say({"id": name, "status": Job.of(name, self._folder).status()})
            case ["jobs", name, "logs", "stream"]:
                self._head("200 OK", "Content-Type: text/plain", "Transfer-Encoding: chunked")
                self._begin(StreamReader, name)
            case ["jobs", name, "logs"]:
                accepted = base64.b64encode(hashlib.sha1(key.encode() + MAGIC).digest()).decode()
                upgrade = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accepted}")
                self._head("101 Switching Protocols", *upgrade)
                self._begin(WebsocketReader, name)
            case _:
                self._head("404 Not Found", "Content-Length: 0", "Connection: close")
                self._transport.close()

    def _begin(self, kind: type[Reader], name: str) -> None:
        self._connections[name] += 1
        job = Job.of(name, self._folder)
        self._timer.add(kind(job, job.most(self._connections[name]), self._transport))

    def _say(self, value: dict[str, str]) -> None:
        body = json.dumps(value).encode()
        length = f"Content-Length: {len(body)}"
        self._head("200 OK", "Content-Type: application/json", length, "Connection: close")
        self._transport.write(body)
        self._transport.close()

    def _head(self, status: str, *fields: str) -> None:
        self._transport.write("\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode())

    def _frames(self) -> None:
        # A client has nothing long to say, and what it says is masked.
        while len(self._received) >= 6 and len(self._received) >= 6 + (self._received[1] & 0x7F):
            kind, end = self._received[0] & 0xF, 6 + (self._received[1] & 0x7F)
            mask, data = self._received[2:6], self._received[6:end]
            self._received = self._received[end:]
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
    await loop.create_server(lambda: Connection(folder, connections, timer), "127.0.0.1", port, backlog=1024)
    await timer.run()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
