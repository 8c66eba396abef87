"""What the page asks of others than Redis: the applications that agents show, and which workers answer."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from worker.agents import DEPENDENCY_TIMEOUT, Agents
from worker.platform import AgentClient, BackendClient, ClientError, RetryPolicy, clean, shorten
from worker.platform.streams import StreamLimits
from worker.settings import Settings

MAX_AGENTS: Final = 20
MAX_REASON_CHARS: Final = 2_000
INSPECT_SECONDS: Final = 1.5
SECONDS_KEPT: Final = 3.0
"""Browsers that ask at about the same time share an answer of agents, or of workers."""

NOT_CONFIGURED: Final = "needs the settings of a worker: SYNAPSE_HOST, SYNAPSE_ACCESS_TOKEN and PLUGINS_DIR"

T = TypeVar("T")
Json = dict[str, Any]


class AgentsAndWorkers:
    """Asks them once for all browsers that want to know at about the same time."""

    def __init__(self, settings: Settings | None) -> None:
        """`settings`: those of a worker; without them nobody is asked."""
        self._settings = settings
        self._known_clients: tuple[BackendClient, Agents] | None = None
        self.deployments = shared_answer(SECONDS_KEPT, self._ask_agents)
        self.workers = shared_answer(SECONDS_KEPT, self._ask_workers)

    def _ask_workers(self) -> Json:
        """The workers that answer, with the queues that each consumes."""
        if self._settings is None:
            return {"workers": [], "problem": NOT_CONFIGURED}
        # Imported here because the app reads the settings.
        from worker.app import app

        inspect = app.control.inspect(timeout=INSPECT_SECONDS)
        try:
            queues, stats = inspect.active_queues() or {}, inspect.stats() or {}
        except Exception as error:  # each broker library has its own
            return {"workers": [], "problem": f"not asked: {type(error).__name__}"}
        return {"workers": [_worker(name, queues.get(name), stats.get(name)) for name in sorted(queues)]}

    def _ask_agents(self) -> Json:
        """The applications that the agents show, each with its replicas and its route."""
        if self._settings is None:
            return {"deployments": [], "problem": NOT_CONFIGURED}
        found, problems = [], []
        try:
            agents = list(self._agents(self._settings))
        except (ClientError, OSError) as error:
            return {"deployments": [], "problem": f"agents not found: {type(error).__name__}"}
        for agent, client in agents:
            try:
                applications = client.list_serve_applications()["results"]
            except (ClientError, OSError) as error:
                problems.append(f"agent {agent}: {type(error).__name__}")
                continue
            found += [_deployment(agent, each) for each in applications if isinstance(each, Mapping)]
        problem = "; ".join(problems) or ("" if agents else "no agent is known")
        return {"deployments": found, "problem": problem}

    def _agents(self, settings: Settings) -> Iterable[tuple[int | str, AgentClient]]:
        backend, agents = self._clients(settings)
        if settings.worker_agent is not None:
            ids: list[int] = [settings.worker_agent]
        elif settings.synapse_agent_url is not None:
            ids = [0]  # the one that is configured, whatever its id
        else:
            shown = [agent.get("id") for agent in backend.list_agents()["results"]]
            ids = [id_ for id_ in shown if isinstance(id_, int)][:MAX_AGENTS]
        for id_ in ids:
            client_of_agent = agents.client(id_, settings.synapse_tenant)
            if client_of_agent is not None:
                yield id_ or "", client_of_agent

    def _clients(self, settings: Settings) -> tuple[BackendClient, Agents]:
        """The client of the backend, and those of the agents: made once, for each has its own connections."""
        if self._known_clients is None:
            token, tenant = settings.synapse_access_token.get_secret_value(), settings.synapse_tenant
            retries = RetryPolicy(max_retry_after=1.0)
            backend = BackendClient(
                settings.synapse_host, token, tenant=tenant, timeout=DEPENDENCY_TIMEOUT, retries=retries
            )
            self._known_clients = backend, Agents(settings, lambda _: backend, StreamLimits())
        return self._known_clients


def _worker(name: str, queues: Any, stats: Any) -> Json:
    named = [queue.get("name") for queue in queues or [] if isinstance(queue, Mapping)]
    stats = stats if isinstance(stats, Mapping) else {}
    pool = stats.get("pool")
    threads = pool.get("max-concurrency") if isinstance(pool, Mapping) else None
    return {
        "name": str(name),
        "queues": [str(queue) for queue in named if queue],
        "threads": threads if isinstance(threads, int) else None,
        "uptime": stats.get("uptime") if isinstance(stats.get("uptime"), int) else None,
    }


def _deployment(agent: int | str, application: Mapping[str, Any]) -> Json:
    """One application of an agent's answer, of which every part may be missing or of another kind."""
    deployments = application.get("deployments")
    parts = (
        [part for part in deployments.values() if isinstance(part, Mapping)]
        if (isinstance(deployments, Mapping))
        else []
    )
    shown = [part.get("replicas") for part in parts]
    replicas = [replica for each in shown if isinstance(each, list) for replica in each]
    running = sum(isinstance(each, Mapping) and each.get("state") == "RUNNING" for each in replicas)
    wanted = [part.get("target_num_replicas") for part in parts]
    messages = [part.get("message") for part in (application, *parts)]
    said = next((text for text in messages if isinstance(text, str) and text.strip()), "")
    return {
        "agent": agent,
        "name": _text(application.get("name")),
        "status": _text(application.get("status")),
        "route": _text(application.get("route_prefix")),
        "running": running,
        "wanted": sum(number for number in wanted if isinstance(number, int)),
        "message": shorten(clean(said), MAX_REASON_CHARS),
    }


def _text(value: object) -> str:
    return shorten(clean(value), 200) if isinstance(value, str) else ""


def shared_answer(seconds: float, make: Callable[[], T]) -> Callable[[], T]:
    """An answer is made once for all who ask within so many seconds; those who come meanwhile wait for it."""
    lock = threading.Lock()
    kept: list[tuple[float, T]] = []

    def answer() -> T:
        with lock:
            if not kept or time.monotonic() - kept[0][0] >= seconds:
                made = make()
                kept[:] = [(time.monotonic(), made)]
            return kept[0][1]

    return answer
