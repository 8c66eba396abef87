"""What a tenant has at once: so many chunks that are worked on, and so many runs under way."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog
from redis import Redis, RedisError

from worker.runs.heartbeat import Heartbeats, run_member
from worker.runs.keys import run_key
from worker.runs.model import AnyRun, Outcome, Reschedule, Step, Suspend
from worker.runs.shares.slots import Share, Slots, Taken, Waits

if TYPE_CHECKING:
    from worker.runs.runs import StepPublisher

log = structlog.get_logger(__name__)

MAX_WAIT_SECONDS = 3600.0
"""A run that waits for a slot gets its message with that, and by the sweep only after so long."""
OTHER_BROKER_SECONDS = 2.0
"""Between two looks for a slot where the queues are not in the Redis of the runs."""

PUBLISHED_AT_ONCE = 100
"""Messages of a tenant that waited for a share which is not limited any more."""


@dataclass(frozen=True)
class ShareLimits:
    """How many each tenant has at once, of all workers together; None for no limit."""

    chunks: int | None = None
    runs: int | None = None
    own_tenant: str | None = None
    """The tenant of the runs whose message names none."""


class Shares:
    """The shares of all tenants in chunks and runs."""

    def __init__(
        self, redis: "Redis", publisher: "StepPublisher", heartbeats: Heartbeats, limits: ShareLimits
    ) -> None:
        self._publisher, self._heartbeats = publisher, heartbeats
        slots = partial(Slots, redis, has_queues=publisher.shares_redis)
        self._chunks = slots(Share.CHUNKS, limits.chunks) if limits.chunks else None
        self._runs = slots(Share.RUNS, limits.runs) if limits.runs else None
        unlimited = (Share.CHUNKS, limits.chunks), (Share.RUNS, limits.runs)
        self._unlimited = [slots(share, PUBLISHED_AT_ONCE) for share, most in unlimited if not most]
        self._own_tenant = limits.own_tenant or ""

    @property
    def are_limited(self) -> bool:
        """Whether a tenant has a limited share of anything."""
        return bool(self._chunks or self._runs)

    def take_chunk(
        self,
        run: AnyRun,
        step: Step,
        kwargs: Mapping[str, object],
        headers: Mapping[str, object] | None = None,
    ) -> Outcome | None:
        """Take a slot for the chunk whose lock this delivery holds: None, or how it waits for one.

        `step`, `kwargs`, `headers`: the chunk's message, which is published again once there is a slot.
        """
        if self._chunks is None or run.lease is None:
            return None
        return self._take(self._chunks, run, run.lease.key, step, kwargs, headers=headers)

    def free_chunk(self, run: AnyRun) -> None:
        """Give the slot back that this delivery has taken; one that stays is found to be free later."""
        if self._chunks is not None and run.lease is not None:
            self._free(self._chunks, run.message.tenant, run.lease.key, run.lease.token)

    def take_run(self, run: AnyRun, step: Step) -> Outcome | None:
        """Take a slot for the run, which it has until its end: None, or how its step waits for one."""
        if self._runs is None:
            return None
        waiting_for = f"the end of another run of its tenant, which has {self._runs.most} at once"
        kwargs = {"generation": run.generation}
        return self._take(self._runs, run, run_key(run.job), step, kwargs, waiting_for)

    def free_run(self, job: str, tenant: str | None) -> None:
        """The run has ended."""
        if self._runs is not None:
            self._free(self._runs, tenant, run_key(job))

    def hand_out(self) -> None:
        """Give the slots to those that wait whose holders are gone, such as chunks of workers that died."""
        for slots in filter(None, (self._chunks, self._runs)):
            slots.hand_out()

    def publish_waiting(self) -> None:
        """Publish what waits for a share that is not limited any more: nobody frees a slot of it."""
        for slots in self._unlimited:
            slots.publish_waiting()

    def _take(
        self,
        slots: Slots,
        run: AnyRun,
        holder: str,
        step: Step,
        kwargs: Mapping[str, object],
        waiting_for: str = "",
        headers: Mapping[str, object] | None = None,
    ) -> Outcome | None:
        tenant = run.message.tenant or self._own_tenant
        if slots.take(tenant, holder, run.job) is Taken.HAS:
            return None
        with self._publisher.collecting() as messages:
            if messages is None:
                # A script cannot publish the message once there is a slot, so that looks for one again.
                if waiting_for and slots.take(tenant, holder, run.job, Waits(None, waiting_for)) is Taken.HAS:
                    return None
                return Reschedule(OTHER_BROKER_SECONDS, keeps_retries=True)
            queue, sent = step.queue or run.queue, {"job": run.job, **kwargs}
            self._publisher.publish(step, queue, sent, priority=run.priority, headers=headers)
        (message,) = messages
        if slots.take(tenant, holder, run.job, Waits(message, waiting_for)) is Taken.HAS:
            return None
        self._heartbeats.extend(run_member(run.job), MAX_WAIT_SECONDS)
        return Suspend()

    def _free(self, slots: Slots, tenant: str | None, holder: str, token: str = "") -> None:
        try:
            slots.free(tenant or self._own_tenant, holder, token)
        except RedisError as error:
            log.warning("slot not given back", holder=holder, error_type=type(error).__name__)
