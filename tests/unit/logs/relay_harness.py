"""The log of a job on a Redis in memory, a scripted source of logs, and relays that tail it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fakeredis import FakeAsyncRedis, FakeRedis

from shared.channels import logs_channel, logs_history
from shared.messages import TailLogsMessage
from worker.logs.relay import LogRelay
from worker.logs.subscriptions import ResumePoint, Subscription
from worker.platform import ClientError
from worker.platform.streams import StreamLimits
from worker.runs.events import LOG_SCRIPT, log_args, log_keys, subscribe_log
from worker.runs.scripts import run_scripts

Entry = dict[str, Any]


class LogOfJob:
    """The log of one job: the operations of a relay, and what a reader sees."""

    def __init__(self, redis: FakeRedis, job: str) -> None:
        self._redis, self.job = redis, job
        self._scripts = run_scripts(redis)
        self._pubsub = redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(logs_channel(job))
        self._pubsub.get_message()

    def subscribe(self, ray_job: str, protocol: str = "stream") -> bool:
        fields = {"job": self.job, "ray_job": ray_job, "protocol": protocol}
        return subscribe_log(self._redis, TailLogsMessage.model_validate(fields), 1000)

    def call_script(self, operation: str, *operands: str | int) -> Any:
        return self._scripts.run(LOG_SCRIPT, log_keys(self.job), *log_args(operation, self.job, *operands))

    def append(
        self,
        ray_job: str,
        claim: str,
        position: int,
        *lines: str,
        max_lines: int = 1000,
        max_bytes: int = 10**6,
    ) -> int:
        batch = [logs_channel(self.job), ray_job, claim, position, len(lines), *lines]
        [answer] = self.call_script("append_lines", "now", "info", max_lines, max_bytes, *batch)
        return int(answer)

    def claim(self, ray_job: str, claim: str) -> list[Any]:
        return list(self.call_script("claim", ray_job, claim))

    def close(self, ray_job: str, claim: str, reason: str = "ended", final_line: str = "") -> int:
        return int(self.call_script("close", ray_job, claim, reason, "now", final_line))

    def history(self) -> list[Entry]:
        return [
            {**entry, "seq": int(entry["seq"])} for _, entry in self._redis.xrange(logs_history(self.job))
        ]

    def published(self) -> list[Entry]:
        """The entries published on the channel since the last call."""
        entries = []
        while (message := self._pubsub.get_message()) is not None:
            entries.append(json.loads(message["data"]))
        return entries

    def lines(self) -> list[str]:
        return [entry["line"] for entry in self.history() if "line" in entry]

    def end_marker(self) -> Entry:
        """The end marker, after checks that it is the only one and the last of gapless entries."""
        entries = self.history()
        assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry.get("type") for entry in entries].count("end") == 1
        assert entries[-1]["type"] == "end"
        return entries[-1]

    def is_closed(self) -> bool:
        return any(entry.get("type") == "end" for entry in self.history())


Step = list[str] | ClientError | Callable[[], Awaitable[None]]


@dataclass
class ScriptedTail:
    """One connection: batches of lines, pauses, or an error; then it is closed."""

    steps: list[Step]
    completed: bool = False
    partial_line: str | None = None

    async def batches(self) -> AsyncIterator[list[str]]:
        for step in self.steps:
            if isinstance(step, ClientError):
                raise step
            if isinstance(step, list):
                yield step
            else:
                await step()


@dataclass
class ScriptedLogSource:
    """Implements `LogSource`; the last connection and the last status are repeated."""

    tails: dict[str, list[ScriptedTail]] = field(default_factory=dict)
    statuses: dict[str, list[str | ClientError]] = field(default_factory=dict)
    message: str | None = None
    opened: list[str] = field(default_factory=list)

    async def tail(self, subscription: Subscription, resume_point: ResumePoint) -> Any:
        self.opened.append(subscription.ray_job)
        tails = self.tails[subscription.ray_job]
        return tails.pop(0) if len(tails) > 1 else tails[0]

    async def job(self, subscription: Subscription, resume_point: ResumePoint) -> dict[str, Any]:
        statuses = self.statuses.get(subscription.ray_job, ["SUCCEEDED"])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if isinstance(status, ClientError):
            raise status
        return {"status": status, "message": self.message}


class RelayHarness:
    """Relays on one Redis and one scripted source."""

    def __init__(self, redis: FakeAsyncRedis) -> None:
        self._redis = redis
        self.source = ScriptedLogSource()
        self._relays: list[asyncio.Task[None]] = []

    def start_relay(self, retry_budget_seconds: float = 5.0, **limits: int) -> "asyncio.Task[None]":
        relay = LogRelay(self._redis, self.source, StreamLimits(**limits), retry_budget_seconds)
        self._relays.append(asyncio.create_task(relay.run()))
        return self._relays[-1]

    async def stop(self) -> None:
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, a minute at most: the bound on a hang, not on a slow machine."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for is in Redis
            await asyncio.sleep(0.01)
