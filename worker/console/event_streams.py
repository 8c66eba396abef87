"""What browsers hear without asking: server-sent events of all runs, and of the log of one."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from secrets import token_hex
from typing import Any, Final, TypeVar

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from shared.follower import AsyncLogFollower, LogEnd, LogLine
from worker.console.changes import ChangeListener, Version
from worker.runs.events import log_state_key

KEEP_ALIVE_SECONDS: Final = 15.0
"""After so long without an event a comment is sent, so that a browser that is gone is noticed."""

SECONDS_BETWEEN_LINES: Final = 0.15
MAX_LINES_AT_ONCE: Final = 1_000
DEFAULT_TAIL: Final = 5_000
MAX_LOG_STREAMS: Final = 40
"""Each has a connection to Redis."""

T = TypeVar("T")
Body = AsyncIterator[bytes]


class EventStreams:
    """The endpoints of the event streams."""

    def __init__(self, changes: ChangeListener, redis: "AsyncRedis") -> None:
        self._changes = changes
        self._redis = redis
        self._epoch = token_hex(4)
        self._closing = asyncio.Event()
        self._logs = 0
        self._encoded: dict[Version, tuple[Version, bytes]] = {}

    def close(self) -> None:
        """End all streams."""
        self._closing.set()

    async def changes(self, request: Request) -> Response:
        """The runs as they are, then what changes of them, a few times a second at most."""
        epoch, _, version = request.headers.get("last-event-id", "").partition("-")
        is_known = epoch == self._epoch and version.isascii() and version.isdigit() and len(version) < 16
        return _stream(self._changes_after(int(version) if is_known else None))

    async def log(self, request: Request) -> Response:
        """The last lines of a run's log, then what comes; `?tail=0` for the whole."""
        if self._logs >= MAX_LOG_STREAMS:
            return PlainTextResponse("so many logs are followed already\n", 503, {"Retry-After": "5"})
        job = request.path_params["job"]
        after = _number(request.headers.get("last-event-id", ""))
        if after is None:
            tail = _number(request.query_params.get("tail", str(DEFAULT_TAIL)))
            last = _number(str(await self._redis.hget(log_state_key(job), "seq"))) or 0
            after = max(last - tail, 0) if tail else 0
        return _stream(self._lines(AsyncLogFollower(self._redis, job, after=after)))

    async def _changes_after(self, known: int | None) -> Body:
        published = self._changes.published
        if known is None:
            content = {**self._state(published), "runs": self._changes.runs.snapshot()}
            # What has changed since then is in the snapshot as well, and comes once more.
            yield self._encode("snapshot", content, published)
            seen = published
        else:
            seen = Version(known)
        while not self._closing.is_set():
            version = await self._wait(self._changes.newer_than(seen))
            if version is None:
                yield b": nothing has changed\n\n"
                continue
            yield self._changes_between(seen, version)
            seen = version

    def _changes_between(self, seen: Version, now: Version) -> bytes:
        """Made once for all browsers that have heard of the same version."""
        known = self._encoded.get(seen)
        if known is None or known[0] != now:
            if any(version != now for version, _ in self._encoded.values()):
                self._encoded.clear()
            content = {**self._state(now), "runs": self._changes.runs.changes_since(seen.runs)}
            known = self._encoded[seen] = now, self._encode("changes", content, now)
        return known[1]

    def _state(self, version: Version) -> dict[str, Any]:
        return {
            "now": round(self._changes.now(), 1),
            "connected": version.is_connected,
            "dead_letters": version.dead_letters,
        }

    def _encode(self, kind: str, content: object, version: Version) -> bytes:
        return encode_event(kind, content, f"{self._epoch}-{version.runs}")

    async def _lines(self, follower: AsyncLogFollower) -> Body:
        lines: asyncio.Queue[LogLine | LogEnd] = asyncio.Queue(MAX_LINES_AT_ONCE)
        following = asyncio.create_task(_follow(follower, lines))
        self._logs += 1
        try:
            while not self._closing.is_set():
                first = await self._wait(lines.get())
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
            self._logs -= 1
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    async def _wait(self, event: Awaitable[T]) -> T | None:
        """The event; None after a while without one, and when the streams are closed."""
        waiting = asyncio.ensure_future(event)
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait(
                {waiting, closing}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()
            closing.cancel()


async def _follow(follower: AsyncLogFollower, lines: "asyncio.Queue[LogLine | LogEnd]") -> None:
    with suppress(RedisError, OSError):
        async for line in follower:
            await lines.put(line)
    await lines.put(LogEnd(follower.seq, follower.reason))


def _stream(body: Body) -> Response:
    # A proxy in between is to pass events on at once.
    return StreamingResponse(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def encode_event(kind: str, content: object, id_: str = "") -> bytes:
    """One server-sent event; JSON has no line breaks, so one line of data holds it."""
    identity = f"id: {id_}\n" if id_ else ""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"{identity}event: {kind}\ndata: {text}\n\n".encode(errors="replace")
