"""The agents of Ray clusters: the configured one, or those that the backend knows by their ids."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

import structlog

from worker.platform import (
    AgentClient,
    BackendClient,
    ClientError,
    MalformedResponseError,
    NotFoundError,
    register_secrets,
)
from worker.platform.streams import StreamLimits
from worker.settings import Settings

log = structlog.get_logger(__name__)

DEPENDENCY_TIMEOUT = {"connect": 3.0, "read": 10.0}
"""Seconds. A step holds one of the worker's slots, so no dependency may hold it for long."""

CACHE_SECONDS, RETRY_SECONDS = 60.0, 10.0
"""How long an agent's address is kept for plugin code, and when it is looked up again after a failure."""
MAX_ADDRESSES = 1_000
"""Which agents are looked up is said by messages, so the addresses kept have a limit."""

UNUSABLE = "malformed answer: the agent's address or token cannot be used"


class Agents:
    """Clients of agents for the worker, and their addresses for plugin code. Safe for threads."""

    def __init__(
        self, settings: Settings, backend: Callable[[str | None], BackendClient], stream_limits: StreamLimits
    ) -> None:
        """`backend` makes the worker's client of the backend for a tenant."""
        self._settings = settings
        self._backend = backend
        self._stream_limits = stream_limits
        self._lock = threading.Lock()
        self._urls: OrderedDict[tuple[int, str | None], tuple[float, str | None]] = OrderedDict()
        """By agent and tenant until when it is kept, and the address; the one looked up last at the end."""

    def client(self, agent: int, tenant: str | None) -> AgentClient | None:
        """The client of a Ray cluster's agent: the configured one, else the one that the backend knows.

        What is configured beside WORKER_AGENT is that agent, and no other.

        None when no agent is known or it has no URL. Raises `ClientError` when the look-up fails.
        """
        settings = self._settings
        if settings.synapse_agent_url is not None and settings.worker_agent in (None, agent):
            token = settings.synapse_agent_token
            return self._client_at(settings.synapse_agent_url, token and token.get_secret_value(), tenant)
        found = self._look_up(agent, tenant)
        if found is None:
            return None
        # The text of the error may show the address or the token, so it is dropped.
        with suppress(ValueError):
            return self._client_at(*found, tenant)
        raise MalformedResponseError(UNUSABLE)

    def url_for_plugins(self, agent: int, tenant: str | None) -> str | None:
        """Where the backend says that an agent is. The token that it gives is never the plugin's.

        Plugin code may do without the agent, so a look-up that fails costs no run.
        """
        key, now = (agent, tenant), time.monotonic()
        known = self._urls.get(key)
        if known is not None and now < known[0]:
            return known[1]
        url = known[1] if known is not None else None
        try:
            found = self._look_up(agent, tenant)
        except (ClientError, OSError) as error:
            log.warning("agent not looked up for plugin code", agent=agent, error_type=type(error).__name__)
            return self._keep(key, now + RETRY_SECONDS, url)
        url = None
        if found is not None:
            # An address that no client can use is none for plugin code.
            with suppress(ValueError):
                self._client_at(*found, tenant)
                url = found[0]
        return self._keep(key, now + CACHE_SECONDS, url)

    def _keep(self, key: tuple[int, str | None], until: float, url: str | None) -> str | None:
        with self._lock:
            self._urls.pop(key, None)
            self._urls[key] = until, url
            while len(self._urls) > MAX_ADDRESSES:
                self._urls.popitem(last=False)
        return url

    def _look_up(self, agent: int, tenant: str | None) -> tuple[str, str] | None:
        """The address and the token that the backend has for an agent; raises `ClientError`."""
        try:
            found = self._backend(tenant).get_agent(agent)
        except NotFoundError:
            return None
        if not found.get("url"):
            return None
        url, token = found["url"], found.get("token") or ""
        if not isinstance(url, str) or not isinstance(token, str):
            raise MalformedResponseError(UNUSABLE)
        register_secrets([token])
        return url, token

    @lru_cache(maxsize=64)  # noqa: B019 - they live as long as the process
    def _client_at(self, url: str, token: str | None, tenant: str | None) -> AgentClient:
        return AgentClient(
            url,
            token or "",
            user_token=self._settings.synapse_access_token.get_secret_value(),
            tenant=tenant,
            timeout=DEPENDENCY_TIMEOUT,
            stream_limits=self._stream_limits,
        )
