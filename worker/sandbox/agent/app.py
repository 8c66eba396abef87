"""The agent's application, and its handlers of resources: capacity, policy and feasibility."""

import contextlib
import hmac
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from httpx_aiohttp import AiohttpTransport
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.routing import Route

from worker.sandbox.agent.capacity import GPU_LIMIT, REPLICA_LIMIT, Demand, Node, feasibility, gpu_utilization
from worker.sandbox.agent.cluster import Cluster, Dashboard, count_replicas
from worker.sandbox.agent.logs import JobLogs
from worker.sandbox.api import NUMBER_TYPES, Api, ApiError, api_error, validated

WORKLOAD_KINDS: Final = ("serve", "job", "task")
Fields = dict[str, type | tuple[type, ...]]
POLICY_FIELDS: Final[Fields] = {REPLICA_LIMIT: (int, type(None)), GPU_LIMIT: NUMBER_TYPES}
FEASIBILITY_FIELDS: Final[Fields] = {
    "kind": str,
    "num_cpus": NUMBER_TYPES,
    "num_gpus": NUMBER_TYPES,
    "memory_bytes": (int, type(None)),
    "replicas": int,
    "metadata": dict,
}


class Resources:
    """Handlers of `resources/` and `gpu_status/`."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        self._policy: dict[str, Any] = {REPLICA_LIMIT: None, GPU_LIMIT: 100}

    def routes(self, api: Api) -> list[Route]:
        """The routes."""
        return [
            api.route("/resources/feasibility/", POST=self.feasibility),
            api.route("/resources/cluster/", GET=self.cluster),
            api.route("/resources/policy/", GET=self.policy, PATCH=self.change_policy),
            api.route("/gpu_status/", GET=self.gpu_status),
        ]

    async def feasibility(self, _request: Request, body: object) -> object:
        """`POST resources/feasibility/`"""
        given = validated(body, FEASIBILITY_FIELDS, ["kind"])
        mistakes = {name: ["must not be negative"] for name in _negative(given)}
        if given["kind"] not in WORKLOAD_KINDS:
            mistakes["kind"] = [f"must be one of {', '.join(WORKLOAD_KINDS)}"]
        if given.get("replicas", 1) < 1:
            mistakes["replicas"] = ["must be at least 1"]
        if mistakes:
            raise ApiError(400, mistakes)
        running = count_replicas(await self._dashboard.applications()) if given["kind"] == "serve" else 0
        policy = self._policy if given["kind"] == "serve" else {}
        return feasibility(Demand.parse(given), await self._dashboard.nodes(), policy, running)

    async def cluster(self, _request: Request, _body: object) -> object:
        """`GET resources/cluster/`; never cached, so `use_cache` has no effect."""
        nodes = await self._dashboard.nodes()
        jobs = await self._dashboard.get("/api/jobs/")
        return {
            "collected_at": datetime.now(UTC).isoformat(),
            "stale": False,
            "cpu": _sums(nodes, "CPU"),
            "memory": _sums(nodes, "memory"),
            "gpu": _gpus(nodes),
            "running_jobs": sum(job["status"] == "RUNNING" for job in jobs),
            "total_serve_replicas": count_replicas(await self._dashboard.applications()),
            "node_counts": {"alive": len(nodes)},
            "nodes": [{"id": node.id, "total": node.total, "used": node.used} for node in nodes],
        }

    async def policy(self, _request: Request, _body: object) -> object:
        """`GET resources/policy/`"""
        return self._policy

    async def change_policy(self, _request: Request, body: object) -> object:
        """`PATCH resources/policy/`"""
        self._policy |= validated(body, POLICY_FIELDS)
        return self._policy

    async def gpu_status(self, _request: Request, _body: object) -> object:
        """`GET gpu_status/`"""
        return _gpus(await self._dashboard.nodes())


def _negative(given: dict[str, Any]) -> list[str]:
    names = ("num_cpus", "num_gpus", "memory_bytes")
    return [name for name in names if given.get(name) is not None and given[name] < 0]


def _sums(nodes: list[Node], resource: str) -> dict[str, float]:
    total = sum(node.total.get(resource, 0.0) for node in nodes)
    used = sum(node.used.get(resource, 0.0) for node in nodes)
    return {"total": total, "used": used, "available": total - used}


def _gpus(nodes: list[Node]) -> dict[str, float]:
    sums = _sums(nodes, "GPU")
    return {
        "total_gpus": sums["total"],
        "available_gpus": sums["available"],
        "max_utilization": gpu_utilization(nodes),
    }


def dashboard_client(url: str, token: str) -> httpx.AsyncClient:
    """A client of Ray's dashboard at `url`."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=15,
        transport=AiohttpTransport(trust_env=False),
    )


def create_app(token: str, client: httpx.AsyncClient, plugin_token: str) -> Starlette:
    """The application; `client` calls Ray's dashboard. `plugin_token`: plugin code's, which may read."""

    def authorise(connection: HTTPConnection) -> None:
        sent = connection.headers.get("Authorization", "").encode()
        if hmac.compare_digest(sent, token.encode()):
            return
        if not hmac.compare_digest(sent, plugin_token.encode()):
            raise api_error(401, "Invalid agent token.")
        asks = connection.url.path == "/resources/feasibility/"
        if connection.scope.get("method", "GET") != "GET" and not asks:
            raise api_error(403, "You do not have permission to perform this action.")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    api = Api(authorise)
    dashboard = Dashboard(client)
    routes = [
        *Cluster(dashboard).routes(api),
        *JobLogs(dashboard, authorise).routes(api),
        *Resources(dashboard).routes(api),
        api.not_found_route(),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
