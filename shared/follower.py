"""Follow a run and its log from now to the end (contract: "What listeners hear: Redis")."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.channels import events_channel, job_key, logs_history
from shared.messages import JsonObject
from shared.statuses import JobStatus

__all__ = [
    "AsyncLogFollower",
    "LogEnd",
    "LogFollower",
    "LogLine",
    "RunEvent",
    "follow_run",
    "parse_log_entry",
]

READ_COUNT: Final = 500
"""Most entries of one read."""

BLOCK_MILLISECONDS: Final = 1000
"""How long a read waits for new entries; shorter than the timeout of a usual client."""

RETRY_SECONDS: Final = 0.2
MAX_UNAVAILABLE_SECONDS: Final = 60.0
"""After so long without an answer from Redis its error is raised to the caller."""

STATE_POLL_SECONDS: Final = 1.0
"""Pub/sub loses what is published while a listener is disconnected, so the record is read as well."""

_END: Final = "end"
_CONNECTION_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a run's log.

    Attributes:
        seq: The entry's number, from 1 without a gap over all sources.
        time: When it was written, ISO 8601 in UTC.
        source: `run` for the run's own messages, else the Ray job that printed the line.
        level: `info`, `warning` or `error`.
        line: The text.
    """

    seq: int
    time: str
    source: str
    level: str
    line: str


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The last entry of a run's log.

    Attributes:
        seq: The entry's number.
        reason: `ended`, `stopped`, `limit` or `unreachable`.
    """

    seq: int
    reason: str


def parse_log_entry(fields: Mapping[str, str]) -> LogLine | LogEnd:
    """Read an entry of the log's history or channel.

    Args:
        fields: The fields of the stream's entry, or the decoded JSON object of the channel.

    Returns:
        A line, or the end of the log.

    Raises:
        KeyError: A field of the contract is missing.
    """
    seq = int(fields["seq"])
    if fields.get("type") == _END:
        return LogEnd(seq, fields["reason"])
    return LogLine(seq, fields["time"], fields["source"], fields["level"], fields["line"])


def _stream_id_after(seq: int) -> str:
    """The stream id behind every entry numbered `seq`; an end that was withdrawn has its number twice."""
    return f"{seq}-18446744073709551615"


class _XreadArguments(TypedDict):
    streams: dict[str, str]
    count: int
    block: int


_Entries = Iterable[tuple[str, Iterable[tuple[str, Mapping[str, str]]]]]
"""An answer of XREAD: by stream, its new entries."""


class _Cursor:
    """How far a follower has read."""

    def __init__(self, job: str, after: int, prefix: str | None) -> None:
        self._key = logs_history(job, prefix=prefix)
        self.seq = after
        self.reason = ""
        self._unavailable_since: float | None = None

    def xread_arguments(self) -> _XreadArguments:
        return {
            "streams": {self._key: _stream_id_after(self.seq)},
            "count": READ_COUNT,
            "block": BLOCK_MILLISECONDS,
        }

    def advance(self, answer: _Entries | None) -> Iterator[LogLine]:
        """The lines in an answer of XREAD, until the log's end."""
        self._unavailable_since = None
        for _key, entries in answer or ():
            for _id, fields in entries:
                entry = parse_log_entry(fields)
                self.seq = entry.seq
                if isinstance(entry, LogEnd):
                    self.reason = entry.reason
                    return
                yield entry

    def should_retry(self) -> bool:
        """Record that Redis did not answer; False once it has not for `MAX_UNAVAILABLE_SECONDS`."""
        now = time.monotonic()
        self._unavailable_since = now if self._unavailable_since is None else self._unavailable_since
        return now - self._unavailable_since < MAX_UNAVAILABLE_SECONDS


class LogFollower:
    """Iterates over the lines of a run's log and waits for new ones until the log ends.

    It joins the history and what comes live without a gap or a double, and survives a restart of Redis.
    Iteration raises the client's error when Redis has not answered for `MAX_UNAVAILABLE_SECONDS`.
    """

    def __init__(self, redis: "Redis", job: str, *, after: int = 0, prefix: str | None = None) -> None:
        """Follow the log of a run.

        Args:
            redis: A client that decodes its answers (`decode_responses=True`).
            job: The backend's job id as text; the run need not exist yet.
            after: The number of the last entry that is known already; 0 to read from the start.
            prefix: The workers' WORKER_REDIS_PREFIX; None for the one of this process's environment.
        """
        self._redis = redis
        self._cursor = _Cursor(job, after, prefix)

    @property
    def seq(self) -> int:
        """The number of the last entry that was read."""
        return self._cursor.seq

    @property
    def reason(self) -> str:
        """Why the log ended, as in `LogEnd`; empty while it has not."""
        return self._cursor.reason

    def __iter__(self) -> Iterator[LogLine]:
        while not self._cursor.reason:
            try:
                answer = self._redis.xread(**self._cursor.xread_arguments())
            except _CONNECTION_ERRORS:
                if not self._cursor.should_retry():
                    raise
                time.sleep(RETRY_SECONDS)
            else:
                yield from self._cursor.advance(answer)


class AsyncLogFollower:
    """`LogFollower` for an event loop: `async for line in AsyncLogFollower(redis, job)`."""

    def __init__(self, redis: "AsyncRedis", job: str, *, after: int = 0, prefix: str | None = None) -> None:
        """Follow the log of a run.

        Args:
            redis: An asynchronous client that decodes its answers (`decode_responses=True`).
            job: The backend's job id as text; the run need not exist yet.
            after: The number of the last entry that is known already; 0 to read from the start.
            prefix: The workers' WORKER_REDIS_PREFIX; None for the one of this process's environment.
        """
        self._redis = redis
        self._cursor = _Cursor(job, after, prefix)

    @property
    def seq(self) -> int:
        """The number of the last entry that was read."""
        return self._cursor.seq

    @property
    def reason(self) -> str:
        """Why the log ended, as in `LogEnd`; empty while it has not."""
        return self._cursor.reason

    async def __aiter__(self) -> AsyncIterator[LogLine]:
        while not self._cursor.reason:
            try:
                answer = await self._redis.xread(**self._cursor.xread_arguments())
            except _CONNECTION_ERRORS:
                if not self._cursor.should_retry():
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                for line in self._cursor.advance(answer):
                    yield line


@dataclass(frozen=True)
class RunEvent:
    """An event of a run.

    Attributes:
        kind: The event's `type`: `state`, `progress`, `metrics` or `message`.
        content: Its other fields; a `state` holds at least `status`.
    """

    kind: str
    content: JsonObject = field(default_factory=dict)


def follow_run(redis: Redis, job: str, *, prefix: str | None = None) -> Iterator[RunEvent]:
    """Follow the events of a run until it ends.

    Args:
        redis: A client that decodes its answers (`decode_responses=True`).
        job: The backend's job id as text; a run that does not exist yet is waited for as PENDING.
        prefix: The workers' WORKER_REDIS_PREFIX; None for the one of this process's environment.

    Yields:
        First the run's state now, last a state whose status is final.

    Raises:
        redis.exceptions.RedisError: Redis cannot be reached.
    """
    record = job_key(job, prefix=prefix)
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    try:
        pubsub.subscribe(events_channel(job, prefix=prefix))
        yield _state(redis, record)
        while True:
            message = pubsub.get_message(timeout=STATE_POLL_SECONDS)
            if message is None:
                state = _state(redis, record)
                if _is_final(state):
                    yield state
                    return
                continue
            event = _event(message["data"])
            if event is not None:
                yield event
                if _is_final(event):
                    return
    finally:
        pubsub.close()


def _state(redis: Redis, record: str) -> RunEvent:
    return RunEvent("state", {"status": JobStatus.PENDING.value, **redis.hgetall(record)})


def _event(data: str) -> RunEvent | None:
    """None for what no worker published: anybody who reaches Redis may publish on the channel."""
    try:
        content = json.loads(data)
        event = RunEvent(str(content.pop("type")), content)
        _is_final(event)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return event


def _is_final(event: RunEvent) -> bool:
    return event.kind == "state" and JobStatus(event.content["status"]).is_final
