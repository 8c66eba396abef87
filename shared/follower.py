"""Follow a run, from where it stands now to its end: what it tells its listeners, and its log."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import TimeoutError as NoAnswerError

from shared.channels import events_channel, job_key, logs_history
from shared.statuses import JobStatus

END = "end"


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line: `source` is "run" for the run's own messages, else the Ray job that printed it."""

    seq: int
    time: str
    source: str
    level: str
    line: str


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Nothing comes any more: "ended", "stopped", "limit" or "unreachable"."""

    seq: int
    reason: str


def entry_of(fields: Mapping[str, str]) -> LogLine | LogEnd:
    """An entry of the history, or of the channel."""
    seq = int(fields["seq"])
    if fields.get("type") == END:
        return LogEnd(seq, fields["reason"])
    return LogLine(seq, fields["time"], fields["source"], fields["level"], fields["line"])


def id_after(seq: int) -> str:
    """The id of the history behind every entry numbered `seq`: an end that was taken back counts too."""
    return f"{seq}-18446744073709551615"


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


__all__ = ["AsyncLogFollower", "LogFollower", "LogLine", "RunEvent", "follow_run"]

SECONDS_BETWEEN_LOOKS = 1.0
"""Pub/sub loses what is sent while a listener is away, so the record is read now and then as well."""


@dataclass(frozen=True)
class RunEvent:
    """Something that a run told: `kind` is "state", "progress", "metrics" or "message"."""

    kind: str
    content: dict[str, Any] = field(default_factory=dict)


def follow_run(redis: Redis, job: str) -> Iterator[RunEvent]:
    """Events of the run of `job`; the first is its state now, the last a state that is final.

    Waits for a run that is not there yet. `redis` must decode its answers.
    """
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    try:
        pubsub.subscribe(events_channel(job))
        yield _state(redis, job)
        while True:
            message = pubsub.get_message(timeout=SECONDS_BETWEEN_LOOKS)
            if message is None:
                state = _state(redis, job)
                if _is_final(state):
                    yield state
                    return
                continue
            event = _event(message["data"])
            yield event
            if _is_final(event):
                return
    finally:
        pubsub.close()


def _state(redis: Redis, job: str) -> RunEvent:
    record = redis.hgetall(job_key(job))
    return RunEvent("state", {"status": JobStatus.PENDING.value, **record})


def _event(data: str) -> RunEvent:
    content = json.loads(data)
    return RunEvent(content.pop("type"), content)


def _is_final(event: RunEvent) -> bool:
    return event.kind == "state" and JobStatus(event.content["status"]).is_final
