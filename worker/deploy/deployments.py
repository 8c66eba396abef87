"""The runs that own a deployed application, and whether it must be kept."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from redis import Redis

from shared.channels import RETENTION_SECONDS, redis_prefix
from worker.runs.locks import Locks
from worker.runs.model import Lease
from worker.services import Services

EXISTED_FIELD = "existed"
JOB_FIELD_PREFIX = "job:"
CONTENT_FIELD_PREFIX = "content:"
OWNED, RELEASED = "1", "0"


def application_key(agent: int | None, app_name: str) -> str:
    """The key of an application of the cluster of `WORKER_AGENT`, or of the only one."""
    return f"{redis_prefix()}:deployments:{{{agent or 'any'}:{app_name}}}"


@contextmanager
def application_lock(locks: Locks, key: str) -> Iterator[bool]:
    """Whether the caller has the application's lock, which is released after the block."""
    lease = Lease(f"{key}:lock", locks.new_token())
    if not locks.acquire(lease.key, lease.token):
        yield False
        return
    with locks.hold(lease):
        yield True


class Ownership:
    """The runs that submitted an application or found it submitted, and whether it must be kept.

    Of several runs that deploy the same application, only the last that gives it up may remove it. Each looks
    and acts under the application's lock: what one run finds unused must not be adopted by another meanwhile.
    """

    def __init__(self, services: Services, app_name: str) -> None:
        self._redis: Redis = services.redis
        self._store, self._locks = services.runs.store, services.runs.locks
        self._key = application_key(services.settings.worker_agent, app_name)

    def locked(self) -> AbstractContextManager[bool]:
        """Whether this delivery has the application's lock, which is released after the block."""
        return application_lock(self._locks, self._key)

    def note_content(self, digest: str, checksum: str) -> None:
        """A plan with this digest deploys the release with this checksum."""
        self._redis.hset(self._key, CONTENT_FIELD_PREFIX + digest, checksum)
        self._redis.expire(self._key, RETENTION_SECONDS)

    def has_content_of(self, digest: str, others: Iterable[str]) -> bool:
        """Whether a plan with one of the digests `others` deploys the same release as that with `digest`."""
        names = [CONTENT_FIELD_PREFIX + each for each in (digest, *others)]
        own, *found = self._redis.hmget(self._key, names)
        return own is not None and own in found

    def acquire(self, job: str, existed: bool) -> None:
        """Let `job` own the application, too; with `existed` it is never removed."""
        ended = [other for other in self._jobs() if self._store.has_ended(other)]
        with self._redis.pipeline(transaction=True) as pipe:
            if ended:
                pipe.hdel(self._key, *(JOB_FIELD_PREFIX + other for other in ended))
            pipe.hset(self._key, mapping={JOB_FIELD_PREFIX + job: OWNED, EXISTED_FIELD: int(existed)})
            pipe.expire(self._key, RETENTION_SECONDS)
            pipe.execute()

    def mark_ran(self) -> None:
        """The application runs: from now on no run that waited for it may remove it."""
        self._redis.hset(self._key, EXISTED_FIELD, 1)
        self._redis.expire(self._key, RETENTION_SECONDS)

    def release(self, job: str) -> bool:
        """Give the application up; true when `job` owned it and no other run does. Safe to repeat.

        Written before the other runs are read, so that of two that give up at once one finds itself the last.
        """
        if not self._redis.hexists(self._key, JOB_FIELD_PREFIX + job):
            return False
        self._redis.hset(self._key, JOB_FIELD_PREFIX + job, RELEASED)
        return all(state == RELEASED or self._store.has_ended(other) for other, state in self._jobs().items())

    def existed_before(self) -> bool:
        """Whether the application has run, or existed before the runs that own it."""
        return str(self._redis.hget(self._key, EXISTED_FIELD)) != "0"

    def _jobs(self) -> dict[str, str]:
        found = self._redis.hgetall(self._key)
        prefix = JOB_FIELD_PREFIX
        return {name.removeprefix(prefix): state for name, state in found.items() if name.startswith(prefix)}
