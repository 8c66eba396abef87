"""What Redis keeps of deployed applications: who is responsible for them, and their packages."""

from typing import Any

import structlog
from redis import Redis

from worker.actions.serve_state import serve_details
from worker.plugins import PluginError, Release, ReleaseNotFoundError
from worker.plugins.ray_session import call_with_timeout, session
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


log = structlog.get_logger(__name__)

SECONDS_BETWEEN_PINS = 240
"""Ray forgets what nobody looked at for ten minutes."""
LOOK_SECONDS = 10.0


class DeployedPackages:
    """The releases behind the applications of this worker's cluster, listed in Redis."""

    def __init__(self, services: Services) -> None:
        self._services = services
        cluster = services.settings.worker_agent or "any"
        self._key = f"synapse:deployed:{{{cluster}}}"

    def remember(self, app_name: str, release: str) -> None:
        """`app_name` runs the code of `release` from now on."""
        self._services.redis.hset(self._key, app_name, release)

    def pin(self) -> None:
        """Look at every package that is in use; one worker does, at most once in four minutes."""
        services = self._services
        redis, address = services.redis, services.settings.ray_address
        if not address or not redis.exists(self._key):
            return
        if not redis.set(f"{self._key}:pinned", 1, nx=True, ex=SECONDS_BETWEEN_PINS):
            return
        try:
            session.connect(address)
            services.host.pin(self._in_use(_live_applications()))
        except PluginError as error:
            redis.delete(f"{self._key}:pinned")
            log.warning("packages not looked at", error_type=type(error).__name__)

    def _in_use(self, live: dict[str, dict[str, Any]]) -> list[Release]:
        releases = []
        for app_name, name in self._services.redis.hgetall(self._key).items():
            if live and app_name not in live:
                self._services.redis.hdel(self._key, app_name)
                continue
            try:
                releases.append(self._services.store.get(name))
            except ReleaseNotFoundError:
                log.warning("a running release is not in the store", plugin=name)
        return releases


def _live_applications() -> dict[str, dict[str, Any]]:
    """What Serve runs; empty also when it does not answer, and then nothing is taken to be gone."""
    try:
        return call_with_timeout(LOOK_SECONDS, serve_details)
    except TimeoutError:
        return {}
