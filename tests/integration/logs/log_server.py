"""A server that speaks the agent's API of logs, for tests and benchmarks: its jobs print, and nothing else.

A job's id says what it prints: `{lines}-{a second}-{new lines a connection}-{end}-{name}`, where 0 means all
at once and all of them. The second connection to `5000-100-50-succeeded-a` breaks off after 100 lines. Line
`i` is `{i} {time at which it was due}`. A job begins when it is first asked for; the folder that is given
remembers when, so that the server may be killed and started again.

Run by `python log_server.py PORT FOLDER`.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import WSMsgType, web

TICK_SECONDS = 0.01
AT_ONCE = 500


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

    def printed(self) -> int:
        """Lines so far."""
        return min(self.lines, int((time.time() - self.start) * self.rate)) if self.rate else self.lines

    def line(self, number: int) -> str:
        """A line of the log, the same whenever it is asked for."""
        due = self.start + (number + 1) / self.rate if self.rate else self.start
        return f"{number} {due:.6f} epoch=3 loss=0.25 한국어 \x1b[32mok\x1b[0m"

    def status(self) -> str:
        """Ray's word for how it is."""
        return self.end if self.printed() == self.lines else "RUNNING"

    async def batches(self, connection: int) -> AsyncIterator[list[str]]:
        """Lines as they come over the so manieth connection."""
        given, most = 0, self.most(connection)
        while given < most:
            until = min(self.printed(), most, given + AT_ONCE)
            if until > given:
                yield [self.line(number) for number in range(given, until)]
                given = until
            elif self.rate:
                due = self.start + (given + 1) / self.rate
                await asyncio.sleep(max(due - time.time(), TICK_SECONDS))

    def most(self, connection: int) -> int:
        """Lines after which the connection ends; it breaks off where these are not all."""
        return min(self.lines, self.cut * connection) if self.cut else self.lines


async def status(request: web.Request) -> web.Response:
    """`GET jobs/{id}/`"""
    name = request.match_info["id"]
    return web.json_response({"id": name, "status": Job.of(name, request.app[FOLDER]).status()})


async def stream(request: web.Request) -> web.StreamResponse:
    """`GET jobs/{id}/logs/stream/`"""
    job = Job.of(request.match_info["id"], request.app[FOLDER])
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    connection = count(request)
    async for lines in job.batches(connection):
        await response.write("".join(f"{line}\n" for line in lines).encode())
    if job.most(connection) < job.lines:
        assert request.transport is not None
        request.transport.abort()
        return response
    await response.write(b'data: {"type": "complete"}\n\n')
    await response.write_eof()
    return response


async def websocket(request: web.Request) -> web.WebSocketResponse:
    """Websocket on `jobs/{id}/logs/`"""
    job = Job.of(request.match_info["id"], request.app[FOLDER])
    response = web.WebSocketResponse(compress=False)
    await response.prepare(request)
    reading = asyncio.create_task(_read(response))
    connection = count(request)
    async for lines in job.batches(connection):
        for line in lines:
            await response.send_str(json.dumps({"type": "log", "message": line}))
    if job.most(connection) == job.lines:
        await response.send_str('{"type": "complete"}')
    await response.close()
    reading.cancel()
    return response


def count(request: web.Request) -> int:
    """The connections that asked for this log, with this one."""
    connections = request.app[CONNECTIONS]
    connections[request.match_info["id"]] += 1
    return connections[request.match_info["id"]]


async def _read(response: web.WebSocketResponse) -> None:
    while (await response.receive()).type is not WSMsgType.CLOSED:
        pass


async def health(_request: web.Request) -> web.Response:
    """`GET health/`"""
    return web.json_response({})


FOLDER: web.AppKey[Path] = web.AppKey("folder", Path)
CONNECTIONS: web.AppKey[Counter[str]] = web.AppKey("connections", Counter)


def main() -> None:
    """Serve until killed."""
    port, folder = sys.argv[1:]
    app = web.Application()
    app[FOLDER] = Path(folder)
    app[CONNECTIONS] = Counter()
    app.router.add_get("/jobs/{id}/", status)
    app.router.add_get("/jobs/{id}/logs/stream/", stream)
    app.router.add_get("/jobs/{id}/logs/", websocket)
    app.router.add_get("/health/", health)
    web.run_app(
        app, host="127.0.0.1", port=int(port), print=None, access_log=None, backlog=1024, shutdown_timeout=0.5
    )


if __name__ == "__main__":
    main()
