"""The logs of jobs: read from Ray once, for any number of clients that tail them."""

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

from worker.platform.streams.lines import EVENT_PREFIX, LineSplitter
from worker.sandbox.agent.cluster import Dashboard, job_path
from worker.sandbox.api import Api, ApiError, api_error, json_response

READ_BYTES: Final = 64 * 1024


class LogFanout:
    """Copies one log from Ray into a temporary file, from which each client reads at its own pace.

    A file, because it bounds the memory however slow a client is. Ray serves a single reader, even for a
    thousand clients.
    """

    def __init__(self, chunks: AsyncGenerator[str]) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed after the last reader
        self._appended = asyncio.Event()
        self._source = chunks
        self._copy_task = asyncio.create_task(self._copy())
        self._copy_task.add_done_callback(self._notify_readers)
        self.reader_count = 0

    @property
    def has_failed(self) -> bool:
        """Whether the copy has failed, so that new clients need a new one."""
        return self._copy_task.done() and (
            self._copy_task.cancelled() or self._copy_task.exception() is not None
        )

    async def read(self) -> AsyncIterator[str]:
        """Read the log from its beginning to its end; raises the error of the copy."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = 0
        while True:
            # Before the read: the event that is taken here announces whatever is written after the read.
            appended, is_complete = self._appended, self._copy_task.done()
            data = os.pread(self._file.fileno(), READ_BYTES, offset)
            if data:
                offset += len(data)
                yield decoder.decode(data)
            elif is_complete:
                self._copy_task.result()
                return
            else:
                await appended.wait()

    async def close(self) -> None:
        """Disconnect from Ray and close the file; only without readers."""
        self._copy_task.cancel()
        await asyncio.gather(self._copy_task, return_exceptions=True)
        await self._source.aclose()
        self._file.close()

    async def _copy(self) -> None:
        async for text in self._source:
            self._file.write(text.encode(errors="replace"))
            self._notify_readers()

    def _notify_readers(self, _: object = None) -> None:
        appended, self._appended = self._appended, asyncio.Event()
        appended.set()


class LogFanouts:
    """One `LogFanout` for each log that clients read at the moment."""

    def __init__(self) -> None:
        self._fanouts: dict[str, LogFanout] = {}

    async def read(self, key: str, chunks: Callable[[], AsyncGenerator[str]]) -> AsyncGenerator[str]:
        """Read a whole log; `chunks` reads it from Ray when no other client does."""
        fanout = self._fanouts.get(key)
        if fanout is None or fanout.has_failed:
            fanout = self._fanouts[key] = LogFanout(chunks())
        fanout.reader_count += 1
        try:
            async for text in fanout.read():
                yield text
        finally:
            fanout.reader_count -= 1
            if not fanout.reader_count:
                if self._fanouts.get(key) is fanout:
                    del self._fanouts[key]
                await fanout.close()


FINAL_JOB_STATUSES: Final = ("SUCCEEDED", "FAILED", "STOPPED")
REOPEN_SECONDS: Final = 1.0
MAX_OPEN_FILES: Final = 8

# Ray sends nothing when compression is offered, sends a line of any length in one message, and must not be
# disconnected by pings that a slow client delays.
TAIL_OPTIONS: Final[dict[str, Any]] = {
    "compression": None,
    "max_size": None,
    "ping_interval": None,
    "proxy": None,
}


class LogUnavailableError(Exception):
    """The rest of a log cannot be read from Ray; the message is shown to clients."""


class RayLogs:
    """Logs of one cluster's jobs."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        self._files = asyncio.Semaphore(MAX_OPEN_FILES)

    async def read_to_end(self, path: str) -> AsyncGenerator[str]:
        """Read the log of the job at `path` to its end, in chunks; raises `LogUnavailableError`.

        All line breaks become `\\n`, because Ray's own tail translates them too.
        """
        characters_read = 0
        for attempt in itertools.count():
            # The status is read before the file: the file of a job that has ended is complete.
            job = await self._job(path)
            has_ended = job["status"] in FINAL_JOB_STATUSES
            async for text in _skip(characters_read, self._file(job, has_ended)):
                characters_read += len(text)
                yield text
            if has_ended:
                return
            if attempt:
                await asyncio.sleep(REOPEN_SECONDS)
            async for text in _skip(characters_read, self._tail(path)):
                characters_read += len(text)
                yield text

    async def read_so_far(self, path: str) -> str:
        """Read what the job at `path` has printed so far."""
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
            raise LogUnavailableError("The Ray cluster cannot be reached.") from None

    async def _file(self, job: dict[str, Any], is_complete: bool) -> AsyncIterator[str]:
        if not job.get("driver_node_id"):
            return  # the job has not started, and has printed nothing
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
            raise LogUnavailableError("Ray did not give the rest of the log.") from None
        if is_complete:
            yield decoder.decode(b"", final=True)

    async def _job(self, path: str) -> dict[str, Any]:
        try:
            job: dict[str, Any] = await self._dashboard.get(path)
        except ApiError:
            raise LogUnavailableError("The Ray cluster does not give the status of the job.") from None
        return job


async def _skip(count: int, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """`chunks` without their first `count` characters."""
    async for text in chunks:
        if rest := text[count:]:
            yield rest
        count = max(0, count - len(text))


MAX_LINE_BYTES: Final = 512 * 1024
"""Longer lines are cut and marked."""

OTHER_LINE_BREAKS: Final = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Characters that some clients treat as line breaks."""

COMPLETE_EVENT: Final = '{"type": "complete"}'


class JobLogs:
    """Handlers of logs. A client needs a socket and no thread."""

    def __init__(self, dashboard: Dashboard, authorise: Callable[[HTTPConnection], None]) -> None:
        self._dashboard, self._authorise = dashboard, authorise
        self._logs, self._fanouts = RayLogs(dashboard), LogFanouts()

    def routes(self, api: Api) -> list[BaseRoute]:
        """The routes."""
        return [
            api.route("/jobs/{id}/logs/", GET=self.whole),
            api.route("/jobs/{id}/logs/stream/", GET=self.stream),
            WebSocketRoute("/jobs/{id}/logs/", self.websocket),
        ]

    async def whole(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/logs/`: all of the log so far, as text."""
        path = await self._job_path(request)
        try:
            return PlainTextResponse(await self._logs.read_so_far(path))
        except LogUnavailableError as error:
            raise api_error(502, str(error)) from None

    async def stream(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/logs/stream/`: plain lines, and an event at the end."""
        path = await self._job_path(request)
        return StreamingResponse(self._stream(path), media_type="text/plain")

    async def websocket(self, websocket: WebSocket) -> None:
        """Websocket on `jobs/{id}/logs/`: one event for each line."""
        try:
            self._authorise(websocket)
            path = await self._job_path(websocket)
        except ApiError as error:
            await websocket.send_denial_response(json_response(error.body, error.status))
            return
        await websocket.accept()
        sending = asyncio.create_task(self._send(websocket, path))
        disconnect = asyncio.create_task(_wait_for_disconnect(websocket))
        try:
            await asyncio.wait((sending, disconnect), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, disconnect):
                task.cancel()
            await asyncio.gather(sending, disconnect, return_exceptions=True)

    async def _job_path(self, connection: HTTPConnection) -> str:
        path = job_path(connection)
        if (await self._dashboard.get(path))["type"] != "SUBMISSION":
            raise api_error(400, "Only a submitted job has a log.")
        return path

    async def _stream(self, path: str) -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(self._batches(path)) as batches:
            async for lines, end_event in batches:
                yield "".join(
                    [*map(_stream_line, lines), *([f"{EVENT_PREFIX} {end_event}\n\n"] if end_event else [])]
                ).encode()

    async def _send(self, websocket: WebSocket, path: str) -> None:
        # The client may disconnect at any moment.
        with contextlib.suppress(WebSocketDisconnect, OSError):
            async with contextlib.aclosing(self._batches(path)) as batches:
                async for lines, end_event in batches:
                    for line in lines:
                        await websocket.send_text(_event("log", line))
                    if end_event:
                        await websocket.send_text(end_event)
            await websocket.close()

    async def _batches(self, path: str) -> AsyncGenerator[tuple[list[str], str]]:
        """Batches of lines, the last of them with the event that ends the stream."""
        splitter = LineSplitter(MAX_LINE_BYTES)
        try:
            async with contextlib.aclosing(
                self._fanouts.read(path, lambda: self._logs.read_to_end(path))
            ) as chunks:
                async for text in chunks:
                    yield splitter.feed(text), ""
        except LogUnavailableError as error:
            yield [], _event("error", str(error))
        else:
            yield splitter.flush(), COMPLETE_EVENT


def _stream_line(line: str) -> str:
    # A line that clients would not read as one plain line is sent as an event.
    if not line or line.startswith(EVENT_PREFIX) or OTHER_LINE_BREAKS.search(line):
        return f"{EVENT_PREFIX} {_event('log', line)}\n\n"
    return f"{line}\n"


def _event(kind: str, message: str) -> str:
    return json.dumps({"type": kind, "message": message})


async def _wait_for_disconnect(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
