"""Ray's dashboard over HTTP: the few calls that the agent needs."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
from starlette.requests import HTTPConnection

from worker.sandbox.agent.capacity import Node
from worker.sandbox.http import refusal


class Dashboard:
    """Answers of Ray, decoded; a Ray that is away is a 503 of the agent."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, path: str, **params: str) -> Any:
        """JSON of any path."""
        return (await self._call("GET", path, params)).json()

    async def post(self, path: str) -> Any:
        """JSON of a call without a body."""
        return (await self._call("POST", path, {})).json()

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: dict[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of an answer as they come; raises httpx's errors."""
        async with self._client.stream("GET", path, params=query) as response:
            response.raise_for_status()
            yield response.aiter_bytes()

    def websocket(self, path: str) -> tuple[str, dict[str, str]]:
        """URL and headers of a websocket."""
        url = str(self._client.base_url).rstrip("/").replace("http", "ws", 1)
        return url + path, {"Authorization": self._client.headers.get("Authorization", "")}

    async def listed(self, kind: str, **params: str) -> list[dict[str, Any]]:
        """A list of the state API: nodes, tasks, actors."""
        answered = await self.get(f"/api/v0/{kind}", **params)
        result: list[dict[str, Any]] = answered["data"]["result"]["result"]
        return result

    async def nodes(self) -> list[Node]:
        """Resources per node: the books of the cluster, and of actors what the books do not hold yet.

        The books are written once a second; an actor that has just been placed would be missed.
        """
        books = await self.get("/api/cluster_status")
        status = books["data"]["clusterStatus"] or {}
        usage = status.get("loadMetricsReport", {}).get("usageByNode", {})
        if not usage:
            raise refusal(503, "The Ray cluster has not reported its resources yet.")
        actors = await self.listed("actors", detail="1", limit="10000")
        held: dict[str, dict[str, float]] = {id: {} for id in usage}
        for actor in actors:
            if actor["state"] == "ALIVE" and actor["node_id"] in held:
                mine = held[actor["node_id"]]
                for name, amount in (actor["required_resources"] or {}).items():
                    mine[name] = mine.get(name, 0.0) + amount
        return [
            Node(
                id,
                total={name: pair[1] for name, pair in resources.items()},
                used={name: max(pair[0], held[id].get(name, 0.0)) for name, pair in resources.items()},
            )
            for id, resources in usage.items()
        ]

    async def applications(self) -> dict[str, dict[str, Any]]:
        """Ray Serve's applications by name."""
        details = await self.get("/api/serve/applications/")
        applications: dict[str, dict[str, Any]] = details["applications"]
        return applications

    async def _call(self, method: str, path: str, params: dict[str, str]) -> httpx.Response:
        try:
            response = await self._client.request(method, path, params=params)
        except httpx.TransportError:
            raise refusal(503, "The Ray cluster cannot be reached.") from None
        if response.status_code == httpx.codes.NOT_FOUND:
            raise refusal(404, "Not found.")
        if not response.is_success:
            raise refusal(502, f"Ray answered {response.status_code}.")
        return response


def job_path(connection: HTTPConnection) -> str:
    """The dashboard's path of the job that is asked for."""
    return f"/api/jobs/{quote(connection.path_params['id'], safe='')}"


def replicas(applications: dict[str, dict[str, Any]]) -> int:
    """Replicas of all applications, the ones too that are asked for and not there yet."""
    deployments = [
        deployment
        for application in applications.values()
        for deployment in application.get("deployments", {}).values()
    ]
    return sum(
        max(deployment.get("target_num_replicas") or 0, len(deployment.get("replicas") or []))
        for deployment in deployments
    )
