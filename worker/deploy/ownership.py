"""Whose deployment an application is, so that a run removes only what it brought and nobody waits for."""

from redis import Redis

from worker.services import Services

DAY_SECONDS = 86_400

EXISTED = "existed"
JOB = "job:"
WAITS, GIVEN_UP = "1", "0"


class Ownership:
    """The runs that submitted or adopted an application on this worker's cluster, and whether it ever ran."""

    def __init__(self, services: Services, app_name: str) -> None:
        self._redis: Redis = services.redis
        self._store = services.runs.store
        cluster = services.settings.worker_agent or "any"
        self._key = f"synapse:deployments:{{{cluster}:{app_name}}}"

    def take(self, job: str, existed: bool) -> None:
        """`job` is responsible, too, from now on; `existed` says that the application stays in any case."""
        over = [other for other in self._jobs() if self._store.is_over(other)]
        with self._redis.pipeline(transaction=True) as pipe:
            if over:
                pipe.hdel(self._key, *(JOB + other for other in over))
            pipe.hset(self._key, mapping={JOB + job: WAITS, EXISTED: int(existed)})
            pipe.expire(self._key, DAY_SECONDS)
            pipe.execute()

    def has_run(self) -> None:
        """The application runs: it is not removed any more by those who wait for it to start."""
        self._redis.hset(self._key, EXISTED, 1)
        self._redis.expire(self._key, DAY_SECONDS)

    def let_go(self, job: str) -> bool:
        """`job` waits for it no longer; whether it was responsible and nobody else waits. Safe to repeat.

        Said before the others are looked at: of two that give up at the same time one finds itself alone.
        """
        if not self._redis.hexists(self._key, JOB + job):
            return False
        self._redis.hset(self._key, JOB + job, GIVEN_UP)
        return all(said == GIVEN_UP or self._store.is_over(each) for each, said in self._jobs().items())

    def existed_before(self) -> bool:
        """Whether the application ran, or was there before those who are responsible for it."""
        return str(self._redis.hget(self._key, EXISTED)) != "0"

    def _jobs(self) -> dict[str, str]:
        found = self._redis.hgetall(self._key)
        return {name.removeprefix(JOB): said for name, said in found.items() if name.startswith(JOB)}
