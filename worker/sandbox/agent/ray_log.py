"""One job's log out of Ray, whole: what its file holds, then as Ray tails it, until the job has ended.

Ray's tail ends without a word when the log holds bytes that are not UTF-8, or half a character at the moment
of reading; what it left out is then read from the file itself. Ray lets only few callers at files at once.
"""

import asyncio
import codecs
import io
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from worker.sandbox.agent.dashboard import Dashboard
from worker.sandbox.http import Refusal

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
