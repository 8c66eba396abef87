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
from celery.worker.state import requests, task_ready
from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from shared.channels import redis_prefix
from shared.messages import DeployMessage, StopMessage, TailLogsMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker.broker.rejections import keep_rejected, rejected_message
from worker.broker.transport import Channel
from worker.lua import redis_time
from worker.runs.model import DamagedRunError, NewerRunError, UnknownRunError
from worker.runs.publisher import RedactedRequest
from worker.runs.reports import reporter
from worker.runs.reports.outbox import REPORT
from worker.runs.runs import publish_current_step
from worker.services import services
from worker.workflow.rejected_jobs import END_REJECTED_JOB
from worker.workflow.texts import Text, in_language
from worker.workflow.validation import readable_job

log = structlog.get_logger(__name__)

KEPT_SECONDS: Final = int(state.REVOKE_EXPIRES)
"""As long as a worker of Celery's remembers an id."""

REPEAT_SECONDS: Final = 5.0
"""By then a worker that connects hears what is revoked, and reads once more what was revoked before that."""

ENTRY_TASKS: Final = {each.task for each in (DeployMessage, ToTaskMessage, TailLogsMessage, StopMessage)}
NO_STEPS: Final = {*ENTRY_TASKS, END_REJECTED_JOB.name, REPORT}
"""Tasks with a job that are no steps of its run."""

REASONS: Final = {"expired": "expired before it began"}
"""What is said in place of Celery's word."""

CANNOT_TERMINATE: Final = "this pool cannot terminate a task: of a step, the run is stopped instead"

_revoke = Panel.data["revoke"]


def can_terminate(pool: Any) -> bool:
    """Whether a pool has processes that it can end, which threads are not."""
    method = getattr(pool, "terminate_job", None)  # a pool of processes gets its own when it starts
    return method is not None and getattr(method, "__func__", None) is not BasePool.terminate_job


class StepRequest(RedactedRequest):
    """A message that a worker has received. A revoked or expired one becomes a dead letter; its job STOPPED.

    With the step of a run, the run ends STOPPED. The poll of a waiting list, on behalf of all its runs, is
    dropped: the sweep publishes it again.
    """

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the process of the task. A thread is interrupted by the end of its run."""
        if can_terminate(pool):
            super().terminate(pool, signal)
        elif not self.time_start:
            self._terminate_on_ack = pool, signal
        else:
            log.warning(CANNOT_TERMINATE, task=self.name, job=readable_job(self.kwargs))
            self._stop_run("terminated")

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        if not self._stop_run(reason):
            self._leave_unacknowledged()
            return
        if self.name in ENTRY_TASKS:
            rejected = rejected_message(self.message, REASONS.get(reason, reason))
            rejected = replace(rejected, task=self.name, message_id=self.id, job_status=JobStatus.STOPPED)
            if not keep_rejected(self, rejected):
                self._leave_unacknowledged()
                return
        super()._announce_revoked(reason, terminated, signum, expired)

    def _stop_run(self, reason: str) -> bool:
        """End the run of a step; false while that is not possible.

        A run that has ended gets its message anew, because it may be the one that cleans up.
        """
        job = readable_job(self.kwargs)
        if self.name in NO_STEPS or job is None:
            return True
        runs = services().runs
        try:
            run = runs.store.load(job)
            if run.end is None:
                text = in_language(run.message.language, Text.STEP_REVOKED, step=self.name, reason=reason)
                runs.events.message(job, text, level="warning")
                log.warning("run stopped", job=job, step=self.name, reason=reason)
            if not reporter.stop(job, runs):
                publish_current_step(run, runs)
        except (UnknownRunError, DamagedRunError):
            return True
        except (NewerRunError, RedisError, OperationalError) as error:
            log.warning("run not stopped", job=job, step=self.name, error_type=type(error).__name__)
            return False
        return True

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
    ids = [str(id_) for id_ in maybe_list(task_id) or []]
    is_here = any(id_ in requests for id_ in ids)
    answer = _revoke(state, task_id, terminate, signal, **kwargs)
    if terminate and is_here and not can_terminate(state.consumer.pool):
        answer = {"ok": f"{answer.get('ok', '')}; {CANNOT_TERMINATE}"}
    try:
        keep_revoked(services().redis, ids)
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
