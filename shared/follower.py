"""Follow a run, from where it stands now to its end: what it tells its listeners, and its log."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from shared.channels import events_channel, job_key
from shared.log_entries import LogLine
from shared.log_follower import AsyncLogFollower, LogFollower
from shared.statuses import JobStatus

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
