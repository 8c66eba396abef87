"""A job's log as the agent gives it: read from Ray once, for any number of followers."""

import asyncio
import codecs
import contextlib
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

import httpx
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from worker.platform.streams.parser import EVENT_PREFIX, LineSplitter
from worker.sandbox.agent.cluster import Dashboard, job_path
from worker.sandbox.api import Api, Refusal, answer, refusal

PIECE: Final = 64 * 1024


class Spool:
    """Fills as fast as `texts` come; each follower reads at its own pace, from the beginning.

    The file keeps the memory flat, however slow a follower, and a thousand of them cost Ray one.
    """

    def __init__(self, texts: AsyncGenerator[str]) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed after its last follower
        self._news = asyncio.Event()
        self._texts = texts
        self._filling = asyncio.create_task(self._fill())
        self._filling.add_done_callback(self._announce)
        self.followers = 0

    @property
    def broken(self) -> bool:
        """Whether filling has failed, so that whoever comes now should try anew."""
        return self._filling.done() and (self._filling.cancelled() or self._filling.exception() is not None)

    async def follow(self) -> AsyncIterator[str]:
        """All of the log, from its beginning to its end; raises what the filling raised."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = 0
        while True:
            # In this order: what is written after the look is announced by the event looked at.
            news, is_all = self._news, self._filling.done()
            data = os.pread(self._file.fileno(), PIECE, offset)
            if data:
                offset += len(data)
                yield decoder.decode(data)
            elif is_all:
                self._filling.result()
                return
            else:
                await news.wait()

    async def close(self) -> None:
        """Leave Ray and the file; only when nobody follows any more."""
        self._filling.cancel()
        await asyncio.gather(self._filling, return_exceptions=True)
        await self._texts.aclose()
        self._file.close()

    async def _fill(self) -> None:
        async for text in self._texts:
            self._file.write(text.encode(errors="replace"))
            self._announce()

    def _announce(self, _: object = None) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class Spools:
    """The spools of the logs that are followed at the moment."""

    def __init__(self) -> None:
        self._spools: dict[str, Spool] = {}

    async def follow(self, key: str, texts: Callable[[], AsyncGenerator[str]]) -> AsyncGenerator[str]:
        """All of one log; `texts` reads it where nobody does so yet."""
        spool = self._spools.get(key)
        if spool is None or spool.broken:
            spool = self._spools[key] = Spool(texts())
        spool.followers += 1
        try:
            async for text in spool.follow():
                yield text
        finally:
            spool.followers -= 1
            if not spool.followers:
                if self._spools.get(key) is spool:
                    del self._spools[key]
                await spool.close()


ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
RETRY_SECONDS: Final = 1.0
FILES_AT_ONCE: Final = 8

# With packing offered, Ray sends nothing; a line of any length comes in one message; who follows may be slow.
TAIL_OPTIONS: Final[dict[str, Any]] = {
    "compression": None,
    "max_size": None,
    "ping_interval": None,
    "proxy": None,
}


class LogBroken(Exception):
    """Ray does not give the rest; the message is for whoever follows."""


class RayLogs:
    """Logs of one cluster's jobs."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        self._files = asyncio.Semaphore(FILES_AT_ONCE)

    async def texts(self, path: str) -> AsyncGenerator[str]:
        """The log of the job at `path` in pieces, to the end of the job; raises `LogBroken`.

        Line ends are `\\n` only: Ray reads so.
        """
        given = 0
        for attempt in itertools.count():
            # Asked before the file is read: of a job that has ended by now, that is all.
            job = await self._job(path)
            has_ended = job["status"] in ENDED
            async for text in _without(given, self._file(job, has_ended)):
                given += len(text)
                yield text
            if has_ended:
                return
            if attempt:
                await asyncio.sleep(RETRY_SECONDS)
            async for text in _without(given, self._tail(path)):
                given += len(text)
                yield text

    async def so_far(self, path: str) -> str:
        """What the job at `path` has printed until now."""
        return "".join([text async for text in self._file(await self._job(path), True)])

    async def _tail(self, path: str) -> AsyncIterator[str]:
        url, headers = self._dashboard.websocket(f"{path}/logs/tail")
        try:
            async with connect(url, additional_headers=headers, **TAIL_OPTIONS) as websocket:
                while True:
                    yield await websocket.recv(decode=True)
        except ConnectionClosed:
            return
        except (WebSocketException, OSError):
            raise LogBroken("The Ray cluster cannot be reached.") from None

    async def _file(self, job: dict[str, Any], is_whole: bool) -> AsyncIterator[str]:
        if not job.get("driver_node_id"):
            return  # it never got as far as printing
        query = {
            "node_id": job["driver_node_id"],
            "filename": f"job-driver-{job['submission_id']}.log",
            "lines": "-1",
        }
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        try:
            async with self._files, self._dashboard.stream("/api/v0/logs/file", query) as chunks:
                async for chunk in chunks:
                    yield decoder.decode(chunk)
        except (httpx.HTTPError, OSError):
            raise LogBroken("Ray did not give the rest of the log.") from None
        if is_whole:
            yield decoder.decode(b"", final=True)

    async def _job(self, path: str) -> dict[str, Any]:
        try:
            job: dict[str, Any] = await self._dashboard.get(path)
        except Refusal:
            raise LogBroken("The Ray cluster does not say how the job is.") from None
        return job


async def _without(known: int, texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """`texts` without their first characters."""
    async for text in texts:
        if rest := text[known:]:
            yield rest
        known = max(0, known - len(text))


LONGEST_LINE: Final = 512 * 1024
"""Bytes; what is above is cut and marked."""

MISREAD: Final = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Characters at which some readers of lines end one."""

COMPLETE: Final = '{"type": "complete"}'


class JobLogs:
    """Handlers of logs. A follower costs a socket and no thread."""

    def __init__(self, dashboard: Dashboard, authorise: Callable[[HTTPConnection], None]) -> None:
        self._dashboard, self._authorise = dashboard, authorise
        self._logs, self._spools = RayLogs(dashboard), Spools()

    def routes(self, api: Api) -> list[BaseRoute]:
        """Their addresses."""
        return [
            api.route("/jobs/{id}/logs/", GET=self.whole),
            api.route("/jobs/{id}/logs/stream/", GET=self.stream),
            WebSocketRoute("/jobs/{id}/logs/", self.websocket),
        ]

    async def whole(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/logs/`: all of the log so far, as text."""
        path = await self._found(request)
        try:
            return PlainTextResponse(await self._logs.so_far(path))
        except LogBroken as broken:
            raise refusal(502, str(broken)) from None

    async def stream(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/logs/stream/`: plain lines, at the end an event."""
        path = await self._found(request)
        return StreamingResponse(self._chunks(path), media_type="text/plain")

    async def websocket(self, websocket: WebSocket) -> None:
        """Websocket on `jobs/{id}/logs/`: an event a line."""
        try:
            self._authorise(websocket)
            path = await self._found(websocket)
        except Refusal as refused:
            await websocket.send_denial_response(answer(refused.body, refused.status))
            return
        await websocket.accept()
        sending = asyncio.create_task(self._send(websocket, path))
        gone = asyncio.create_task(_gone(websocket))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _found(self, connection: HTTPConnection) -> str:
        path = job_path(connection)
        if (await self._dashboard.get(path))["type"] != "SUBMISSION":
            raise refusal(400, "Only a submitted job has a log.")
        return path

    async def _chunks(self, path: str) -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(self._batches(path)) as batches:
            async for lines, end in batches:
                yield "".join([*map(_chunk, lines), *([f"{EVENT_PREFIX} {end}\n\n"] if end else [])]).encode()

    async def _send(self, websocket: WebSocket, path: str) -> None:
        # The follower may go at any moment.
        with contextlib.suppress(WebSocketDisconnect, OSError):
            async with contextlib.aclosing(self._batches(path)) as batches:
                async for lines, end in batches:
                    for line in lines:
                        await websocket.send_text(_event("log", line))
                    if end:
                        await websocket.send_text(end)
            await websocket.close()

    async def _batches(self, path: str) -> AsyncGenerator[tuple[list[str], str]]:
        """Lines, and with the last of them the event that ends the stream."""
        splitter = LineSplitter(LONGEST_LINE)
        try:
            async with contextlib.aclosing(
                self._spools.follow(path, lambda: self._logs.texts(path))
            ) as texts:
                async for text in texts:
                    yield splitter.feed(text), ""
        except LogBroken as broken:
            yield [], _event("error", str(broken))
        else:
            yield splitter.flush(), COMPLETE


def _chunk(line: str) -> str:
    # What would be misread as something else than one line goes as an event.
    if not line or line.startswith(EVENT_PREFIX) or MISREAD.search(line):
        return f"{EVENT_PREFIX} {_event('log', line)}\n\n"
    return f"{line}\n"


def _event(kind: str, message: str) -> str:
    return json.dumps({"type": kind, "message": message})


async def _gone(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
