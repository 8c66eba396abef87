"""Whose deployment an application is, so that a run removes only what it brought and nobody took over."""

from redis import Redis

from worker.services import Services

DAY_SECONDS = 86_400


class Ownership:
    """The last run that submitted or adopted an application on this worker's cluster."""

    def __init__(self, services: Services, app_name: str) -> None:
        self._redis: Redis = services.redis
        cluster = services.settings.worker_agent or "any"
        self._key = f"synapse:deployments:{{{cluster}:{app_name}}}"

    def take(self, job: str, existed: bool) -> None:
        """`job` is responsible from now on; `existed` says that the application stays whatever happens."""
        self._redis.hset(self._key, mapping={"job": job, "existed": int(existed)})
        self._redis.expire(self._key, DAY_SECONDS)

    def holds(self, job: str) -> bool:
        """Whether `job` still is."""
        return str(self._redis.hget(self._key, "job")) == job

    def existed_before(self) -> bool:
        """Whether the application was there before whoever is responsible for what is there now."""
        return str(self._redis.hget(self._key, "existed")) != "0"
