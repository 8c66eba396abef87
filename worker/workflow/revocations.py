"""Ids of revoked tasks, kept in Redis: a worker that starts later knows them.

In stock Celery workers ask each other for them when they start (mingle), and lose them with the last worker.
"""

from typing import Any, Final

import structlog
from celery import bootsteps
from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.control import Panel, control_command
from redis import Redis, RedisError

from shared.channels import redis_prefix
from worker.lua import redis_time
from worker.services import services

log = structlog.get_logger(__name__)

KEPT_SECONDS: Final = int(state.REVOKE_EXPIRES)
"""As long as a worker of Celery's remembers an id."""

REPEAT_SECONDS: Final = 5.0
"""By then a worker that connects hears what is revoked, and reads once more what was revoked before that."""

_revoke = Panel.data["revoke"]


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
    answer = _revoke(state, task_id, terminate, signal, **kwargs)
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
