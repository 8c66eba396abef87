"""Revoked and expired messages: none is dropped without a word.

Ids of revoked tasks are kept in Redis, for workers that start later. In stock Celery workers ask each other
for them when they start (mingle), and lose them with the last worker.
"""

from dataclasses import replace
from typing import Any, Final

import structlog
from celery import bootsteps
from celery.concurrency.base import BasePool
from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.control import Panel, control_command
from celery.worker.state import task_ready
from redis import Redis, RedisError

from shared.channels import redis_prefix
from shared.messages import DeployMessage, StopMessage, TailLogsMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker.broker.rejections import keep_rejected, rejected_message
from worker.broker.transport import Channel
from worker.lua import redis_time
from worker.runs.publisher import RedactedRequest
from worker.services import services

log = structlog.get_logger(__name__)

KEPT_SECONDS: Final = int(state.REVOKE_EXPIRES)
"""As long as a worker of Celery's remembers an id."""

REPEAT_SECONDS: Final = 5.0
"""By then a worker that connects hears what is revoked, and reads once more what was revoked before that."""

ENTRY_TASKS: Final = {each.task for each in (DeployMessage, ToTaskMessage, TailLogsMessage, StopMessage)}

REASONS: Final = {"expired": "expired before it began"}
"""What is said in place of Celery's word."""

CANNOT_TERMINATE: Final = "this pool cannot terminate a task; `synapse-worker stop JOB` ends a run"

_revoke = Panel.data["revoke"]


def can_terminate(pool: Any) -> bool:
    """Whether a pool has processes that it can end, which threads are not."""
    method = getattr(pool, "terminate_job", None)  # a pool of processes gets its own when it starts
    return method is not None and getattr(method, "__func__", None) is not BasePool.terminate_job


class StepRequest(RedactedRequest):
    """A message that a worker has received. A revoked or expired one becomes a dead letter; its job STOPPED.

    The step of a run is dropped: the sweep publishes it again.
    """

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the process of the task, if it has one."""
        if can_terminate(pool):
            super().terminate(pool, signal)
        else:
            log.warning(CANNOT_TERMINATE, task=self.name)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        if self.name in ENTRY_TASKS:
            rejected = rejected_message(self.message, REASONS.get(reason, reason))
            rejected = replace(rejected, task=self.name, message_id=self.id, job_status=JobStatus.STOPPED)
            if not keep_rejected(self, rejected):
                self._leave_unacknowledged()
                return
        super()._announce_revoked(reason, terminated, signum, expired)

    def _leave_unacknowledged(self) -> None:
        task_ready(self)
        if isinstance(self.message.channel, Channel):
            self.message.channel.qos.release(self.message.delivery_tag)


def revoked_key() -> str:
    """Sorted set: ids of revoked tasks by the time on Redis's clock at which they were revoked."""
    return f"{redis_prefix()}:revoked"


def keep_revoked(redis: "Redis", ids: list[str]) -> None:
    """Keep the ids for the workers that start within the next hours."""
    now = redis_time(redis)
    with redis.pipeline() as pipeline:
        pipeline.zadd(revoked_key(), dict.fromkeys(ids, now))
        pipeline.zremrangebyscore(revoked_key(), "-inf", now - KEPT_SECONDS)
        pipeline.expire(revoked_key(), KEPT_SECONDS)
        pipeline.execute()


def load_revoked(redis: "Redis") -> None:
    """Let this process know the ids that other workers have kept."""
    since = redis_time(redis) - KEPT_SECONDS
    state.merge_revoked(redis.zrangebyscore(revoked_key(), since, "+inf"))


@control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any) -> Any:
    """Revoke task by task id (or list of ids)."""
    terminates = terminate and can_terminate(state.consumer.pool)
    answer = _revoke(state, task_id, terminates, signal, **kwargs)
    if terminate and not terminates:
        answer = {"ok": f"{answer.get('ok', '')}; {CANNOT_TERMINATE}"}
    try:
        keep_revoked(services().redis, [str(id_) for id_ in maybe_list(task_id) or []])
    except RedisError as error:
        log.warning("revoked tasks not kept", error_type=type(error).__name__)
    return answer


class RevocationsStep(bootsteps.StartStopStep):
    """Reads the revoked ids whenever a worker has connected."""

    requires = ("celery.worker.consumer.control:Control",)

    def start(self, c: Any) -> None:
        """The consumer is connected."""
        self._load()
        c.timer.call_after(REPEAT_SECONDS, self._load)

    @staticmethod
    def _load() -> None:
        try:
            load_revoked(services().redis)
        except RedisError as error:
            log.warning("revoked tasks not read", error_type=type(error).__name__)
