"""The log of a run as it comes: server-sent events."""

import asyncio
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from shared.channels import job_key, logs_history
from shared.follower import AsyncLogFollower, LogEnd, LogLine
from worker.console.event_streams import Body, Stream, encode_event, next_event
from worker.runs.events import log_state_key
from worker.runs.keys import ended_run_key

SECONDS_BETWEEN_LINES: Final = 0.15
MAX_LINES_AT_ONCE: Final = 1_000
DEFAULT_TAIL: Final = 5_000
MAX_LOG_STREAMS: Final = 40
"""Each has a connection to Redis."""

EXPIRED: Final = "expired"
"""In place of the reason of a log's end: the run has ended, and its log is not kept any more."""


class LogStreams:
    """The endpoint of logs."""

    def __init__(self, redis: "AsyncRedis", closing: asyncio.Event) -> None:
        """`closing`: set when all streams are to end."""
        self._redis = redis
        self._closing = closing
        self.open = 0
        """How many there are, those included that are about to begin."""

    async def log(self, request: Request) -> Response:
        """The last lines of a run's log, then what comes; `?tail=0` for the whole."""
        if self.open >= MAX_LOG_STREAMS:
            return PlainTextResponse("so many logs are followed already\n", 503, {"Retry-After": "5"})
        # Before anything is awaited: requests that come at the same time are to see each other.
        self.open += 1
        try:
            body = await self._body(request)
        except BaseException:
            self._has_ended()
            raise
        return Stream(body, self._has_ended)

    def _has_ended(self) -> None:
        self.open -= 1

    async def _body(self, request: Request) -> Body:
        job = request.path_params["job"]
        is_kept = await self._redis.exists(ended_run_key(job))
        if is_kept and not await self._redis.exists(job_key(job), logs_history(job)):
            return _expired_log()
        after = _number(request.headers.get("last-event-id", ""))
        if after is None:
            tail = _number(request.query_params.get("tail", str(DEFAULT_TAIL)))
            last = _number(str(await self._redis.hget(log_state_key(job), "seq"))) or 0
            after = max(last - tail, 0) if tail else 0
        return self._lines(AsyncLogFollower(self._redis, job, after=after))

    async def _lines(self, follower: AsyncLogFollower) -> Body:
        lines: asyncio.Queue[LogLine | LogEnd] = asyncio.Queue(MAX_LINES_AT_ONCE)
        following = asyncio.create_task(_follow(follower, lines))
        try:
            while not self._closing.is_set():
                first = await next_event(lines.get(), self._closing)
                if first is None:
                    yield b": no line\n\n"
                    continue
                await asyncio.sleep(SECONDS_BETWEEN_LINES)
                batch = [first]
                while not lines.empty():
                    batch.append(lines.get_nowait())
                rows = [
                    [line.seq, line.time, line.source, line.level, line.line]
                    for line in batch
                    if isinstance(line, LogLine)
                ]
                if rows:
                    yield encode_event("lines", rows, str(rows[-1][0]))
                if isinstance(batch[-1], LogEnd):
                    # Without a reason Redis is away, and the browser asks again for what comes after.
                    if batch[-1].reason:
                        yield encode_event("end", {"reason": batch[-1].reason})
                    break
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


async def _expired_log() -> Body:
    yield encode_event("end", {"reason": EXPIRED})


async def _follow(follower: AsyncLogFollower, lines: "asyncio.Queue[LogLine | LogEnd]") -> None:
    with suppress(RedisError, OSError):
        async for line in follower:
            await lines.put(line)
    await lines.put(LogEnd(follower.seq, follower.reason))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
