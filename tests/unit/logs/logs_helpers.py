"""A job's log as a listener and as a relay sees it, and an agent whose logs are scripted."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fakeredis import FakeAsyncRedis, FakeRedis

from shared.channels import logs_channel, logs_history
from shared.messages import TailLogsMessage
from worker.logs.relay import Relay
from worker.logs.subscriptions import Beginning, Booking, book
from worker.platform import ClientError
from worker.platform.streams import StreamLimits
from worker.runs.events import log_args, log_keys
from worker.runs.scripts import run_scripts

Entry = dict[str, Any]


class Log:
    """The log of one job."""

    def __init__(self, redis: FakeRedis, job: str) -> None:
        self._redis, self.job = redis, job
        self._scripts = run_scripts(redis)
        self._pubsub = redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(logs_channel(job))
        self._pubsub.get_message()

    def book(self, ray_job: str, protocol: str = "stream") -> bool:
        fields = {"job": self.job, "ray_job": ray_job, "protocol": protocol}
        return book(self._redis, TailLogsMessage.model_validate(fields), 1000)

    def call(self, operation: str, *own: str | int) -> Any:
        return self._scripts.run("log", log_keys(self.job), *log_args(operation, self.job, *own))

    def add(self, ray_job: str, claim: str, at: int, *lines: str, most: int = 1000, size: int = 10**6) -> int:
        log = [logs_channel(self.job), ray_job, claim, at, len(lines), *lines]
        [answer] = self.call("relay", "now", "info", most, size, *log)
        return int(answer)

    def begin(self, ray_job: str, claim: str) -> list[Any]:
        return list(self.call("begin", ray_job, claim))

    def close(self, ray_job: str, claim: str, reason: str = "ended", word: str = "") -> int:
        return int(self.call("close", ray_job, claim, reason, "now", word))

    def history(self) -> list[Entry]:
        return [
            {**entry, "seq": int(entry["seq"])} for _, entry in self._redis.xrange(logs_history(self.job))
        ]

    def heard(self) -> list[Entry]:
        """What came over the channel."""
        entries = []
        while (message := self._pubsub.get_message()) is not None:
            entries.append(json.loads(message["data"]))
        return entries

    def lines(self) -> list[str]:
        return [entry["line"] for entry in self.history() if "line" in entry]

    def end(self) -> Entry:
        """The end, which stands once, and last; every number before it is there."""
        entries = self.history()
        assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry.get("type") for entry in entries].count("end") == 1
        assert entries[-1]["type"] == "end"
        return entries[-1]

    def is_over(self) -> bool:
        return any(entry.get("type") == "end" for entry in self.history())


Step = list[str] | ClientError | Callable[[], Awaitable[None]]


@dataclass
class Tail:
    """One connection: batches of lines, waits, a failure; then it is closed."""

    steps: list[Step]
    completed: bool = False
    rest: str | None = None

    async def batches(self) -> AsyncIterator[list[str]]:
        for step in self.steps:
            if isinstance(step, ClientError):
                raise step
            if isinstance(step, list):
                yield step
            else:
                await step()


@dataclass
class Agent:
    """Implements `LogSource`; the last connection is repeated."""

    tails: dict[str, list[Tail]] = field(default_factory=dict)
    statuses: dict[str, list[str | ClientError]] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    async def tail(self, booking: Booking, beginning: Beginning) -> Any:
        self.opened.append(booking.ray_job)
        tails = self.tails[booking.ray_job]
        return tails.pop(0) if len(tails) > 1 else tails[0]

    async def status(self, booking: Booking, beginning: Beginning) -> str:
        statuses = self.statuses.get(booking.ray_job, ["SUCCEEDED"])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if isinstance(status, ClientError):
            raise status
        return status


class Logs:
    """Relays on one Redis."""

    def __init__(self, redis: FakeAsyncRedis) -> None:
        self._redis = redis
        self.agent = Agent()
        self._relays: list[asyncio.Task[None]] = []

    def relay(self, patience: float = 5.0, **limits: int) -> "asyncio.Task[None]":
        relay = Relay(self._redis, self.agent, StreamLimits(**limits), patience)
        self._relays.append(asyncio.create_task(relay.run()))
        return self._relays[-1]

    async def stop(self) -> None:
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is in Redis
            await asyncio.sleep(0.01)
