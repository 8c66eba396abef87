"""Follow the log of a job: its history and what comes live, as one row without a gap or a double.

The history is a stream to which every line is added in the moment in which it is published, so a follower
reads that alone, from its beginning, and waits for more. After a lost connection it goes on where it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import TimeoutError as NoAnswerError

from shared.channels import logs_history
from shared.log_entries import LogEnd, LogLine, entry_of, id_after

A_READ: Final = 500
WAIT_MILLISECONDS: Final = 1000
"""Shorter than the time-out of a usual client."""

PAUSE_SECONDS: Final = 0.2
AWAY_SECONDS: Final = 60.0
"""After so long without an answer of Redis the error is the caller's."""

_LOST: Final = (LostConnectionError, NoAnswerError, OSError)


class _Place:
    """Where a follower stands."""

    def __init__(self, job: str, after: int) -> None:
        self._key = logs_history(job)
        self.seq = after
        self.reason = ""
        self._away_since: float | None = None

    def question(self) -> dict[str, Any]:
        """The arguments of XREAD."""
        return {"streams": {self._key: id_after(self.seq)}, "count": A_READ, "block": WAIT_MILLISECONDS}

    def lines(self, answer: Any) -> Iterator[LogLine]:
        """What XREAD gave."""
        self._away_since = None
        for _key, entries in answer or ():
            for _id, fields in entries:
                entry = entry_of(fields)
                self.seq = entry.seq
                if isinstance(entry, LogEnd):
                    self.reason = entry.reason
                    return
                yield entry

    def bears_loss(self) -> bool:
        """Whether to ask again after Redis did not answer."""
        now = time.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        return now - self._away_since < AWAY_SECONDS


class LogFollower:
    """Iterate over it: the lines of `job`'s log from number `after` + 1 to its end, for which it waits.

    `reason` then says why it ended, `seq` is the number of the last entry. `redis` must decode its answers.
    """

    def __init__(self, redis: "Redis", job: str, *, after: int = 0) -> None:
        self._redis = redis
        self._place = _Place(job, after)

    @property
    def seq(self) -> int:
        """The number of the last entry that was given."""
        return self._place.seq

    @property
    def reason(self) -> str:
        """Why the log ended, empty while it has not."""
        return self._place.reason

    def __iter__(self) -> Iterator[LogLine]:
        while not self._place.reason:
            try:
                answer = self._redis.xread(**self._place.question())
            except _LOST:
                if not self._place.bears_loss():
                    raise
                time.sleep(PAUSE_SECONDS)
            else:
                yield from self._place.lines(answer)


class AsyncLogFollower:
    """The same for an event loop: `async for line in AsyncLogFollower(redis, job)`."""

    def __init__(self, redis: "AsyncRedis", job: str, *, after: int = 0) -> None:
        self._redis = redis
        self._place = _Place(job, after)

    @property
    def seq(self) -> int:
        """The number of the last entry that was given."""
        return self._place.seq

    @property
    def reason(self) -> str:
        """Why the log ended, empty while it has not."""
        return self._place.reason

    async def __aiter__(self) -> AsyncIterator[LogLine]:
        while not self._place.reason:
            try:
                answer = await self._redis.xread(**self._place.question())
            except _LOST:
                if not self._place.bears_loss():
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                for line in self._place.lines(answer):
                    yield line
