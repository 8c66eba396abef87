"""What browsers hear of all runs without asking: server-sent events."""

import asyncio
import json
import math
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import accumulate
from secrets import token_hex
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from worker.console.changes import ChangeListener, Version
from worker.metrics import CONSOLE_SENDING

KEEP_ALIVE_SECONDS: Final = 15.0
"""After so long without an event a comment is sent, so that a browser that is gone is noticed."""

T = TypeVar("T")
Body = AsyncIterator[bytes]


class ChangeStreams:
    """The endpoint of the changes of all runs."""

    def __init__(self, changes: ChangeListener, closing: asyncio.Event) -> None:
        """`closing`: set when all streams are to end."""
        self._changes = changes
        self._epoch = token_hex(4)
        self._closing = closing
        self._encoded: dict[Version, tuple[Version, bytes]] = {}
        self.open = 0
        """How many there are."""
        self.sending = Durations(CONSOLE_SENDING.buckets)
        """From a change to its having been sent to a browser."""

    async def changes(self, request: Request) -> Response:
        """The runs as they are, then what changes of them, a few times a second at most."""
        epoch, _, version = request.headers.get("last-event-id", "").partition("-")
        is_known = epoch == self._epoch and version.isascii() and version.isdigit() and len(version) < 16
        self.open += 1
        return Stream(self._changes_after(int(version) if is_known else None), self._has_ended)

    def _has_ended(self) -> None:
        self.open -= 1

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
            version = await next_event(self._changes.newer_than(seen), self._closing)
            if version is None:
                yield b": nothing has changed\n\n"
                continue
            yield self._changes_between(seen, version)
            if version.oldest_at is not None:
                self.sending.add(self._changes.now() - version.oldest_at)
            seen = version

    def _changes_between(self, seen: Version, now: Version) -> bytes:
        """Made once for all browsers that have heard of the same version."""
        known = self._encoded.get(seen)
        if known is None or known[0] != now:
            if any(version != now for version, _ in self._encoded.values()):
                self._encoded.clear()
            runs = self._changes.runs
            is_snapshot = not runs.knows_changes_since(seen.runs)
            kind = "snapshot" if is_snapshot else "changes"
            changed = runs.snapshot() if is_snapshot else runs.changes_since(seen.runs)
            content = {**self._state(now), "runs": changed}
            known = self._encoded[seen] = now, self._encode(kind, content, now)
        return known[1]

    def _state(self, version: Version) -> dict[str, Any]:
        return {
            "now": round(self._changes.now(), 1),
            "connected": version.is_connected,
            "dead_letters": version.dead_letters,
        }

    def _encode(self, kind: str, content: object, version: Version) -> bytes:
        return encode_event(kind, content, f"{self._epoch}-{version.runs}")


async def next_event(event: Awaitable[T], closing: asyncio.Event) -> T | None:
    """The event; None after a while without one, and when the streams are closed."""
    waiting = asyncio.ensure_future(event)
    closed = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait({waiting, closed}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        closed.cancel()


class Stream(StreamingResponse):
    """The answer that lasts."""

    def __init__(self, body: Body, has_ended: Callable[[], None] = lambda: None) -> None:
        """`has_ended` is called once, also where the browser is gone before the first event."""
        # A proxy in between is to pass events on at once.
        super().__init__(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._has_ended = has_ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it to its end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._has_ended()


class Durations:
    """Counts how long something takes, as a histogram does: by upper limits in seconds."""

    def __init__(self, limits: Sequence[float]) -> None:
        self._limits = (*limits, math.inf)
        self._counts = [0] * len(self._limits)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one; clocks of two machines may differ by more than it takes."""
        seconds = max(seconds, 0.0)
        self._counts[bisect_left(self._limits, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> list[tuple[str, int]]:
        """For each limit how many took no longer, as Prometheus has it."""
        limits = [str(float(limit)) for limit in self._limits[:-1]]
        return list(zip([*limits, "+Inf"], accumulate(self._counts), strict=True))


def encode_event(kind: str, content: object, id_: str = "") -> bytes:
    """One server-sent event; JSON has no line breaks, so one line of data holds it."""
    identity = f"id: {id_}\n" if id_ else ""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"{identity}event: {kind}\ndata: {text}\n\n".encode(errors="replace")
