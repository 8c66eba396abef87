"""Ray's jobs, nodes, tasks and Serve applications, read from Ray's dashboard."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import quote

import httpx
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route

from worker.sandbox.agent.capacity import Node
from worker.sandbox.api import Api, api_error


class Dashboard:
    """Calls Ray's dashboard and decodes the responses; an unavailable Ray is a 503 of the agent."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, path: str, **params: str) -> Any:
        """GET any path; returns the JSON."""
        return (await self._call("GET", path, params)).json()

    async def post(self, path: str) -> Any:
        """POST without a body; returns the JSON."""
        return (await self._call("POST", path, {})).json()

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: dict[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Stream the bytes of a response; raises httpx's errors."""
        async with self._client.stream("GET", path, params=query) as response:
            response.raise_for_status()
            yield response.aiter_bytes()

    def websocket(self, path: str) -> tuple[str, dict[str, str]]:
        """URL and headers of a websocket."""
        url = str(self._client.base_url).rstrip("/").replace("http", "ws", 1)
        return url + path, {"Authorization": self._client.headers.get("Authorization", "")}

    async def list_state(self, kind: str, **params: str) -> list[dict[str, Any]]:
        """List entities of Ray's state API: nodes, tasks, actors."""
        answer = await self.get(f"/api/v0/{kind}", **params)
        result: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return result

    async def nodes(self) -> list[Node]:
        """The nodes with their resources.

        Ray updates the usage of a node once a second, and it would miss an actor that has just been placed.
        Therefore the usage is at least the sum over the node's actors.
        """
        answer = await self.get("/api/cluster_status")
        status = answer["data"]["clusterStatus"] or {}
        usage = status.get("loadMetricsReport", {}).get("usageByNode", {})
        if not usage:
            raise api_error(503, "The Ray cluster has not reported its resources yet.")
        actors = await self.list_state("actors", detail="1", limit="10000")
        actor_usage: dict[str, dict[str, float]] = {id: {} for id in usage}
        for actor in actors:
            if actor["state"] == "ALIVE" and actor["node_id"] in actor_usage:
                node_usage = actor_usage[actor["node_id"]]
                for name, amount in (actor["required_resources"] or {}).items():
                    node_usage[name] = node_usage.get(name, 0.0) + amount
        return [
            Node(
                id,
                total={name: pair[1] for name, pair in resources.items()},
                used={name: max(pair[0], actor_usage[id].get(name, 0.0)) for name, pair in resources.items()},
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
            raise api_error(503, "The Ray cluster cannot be reached.") from None
        if response.status_code == httpx.codes.NOT_FOUND:
            raise api_error(404, "Not found.")
        if not response.is_success:
            raise api_error(502, f"Ray answered {response.status_code}.")
        return response


def job_path(connection: HTTPConnection) -> str:
    """The dashboard's path of the requested job."""
    return f"/api/jobs/{quote(connection.path_params['id'], safe='')}"


def count_replicas(applications: dict[str, dict[str, Any]]) -> int:
    """Replicas of all applications, including those that Serve has yet to start."""
    deployments = [
        deployment
        for application in applications.values()
        for deployment in application.get("deployments", {}).values()
    ]
    return sum(
        max(deployment.get("target_num_replicas") or 0, len(deployment.get("replicas") or []))
        for deployment in deployments
    )


DELETE_TIMEOUT_SECONDS = 60


class Cluster:
    """Handlers of the cluster's entities."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def routes(self, api: Api) -> list[Route]:
        """The routes."""
        return [
            api.route("/health/", GET=self.health),
            api.route("/jobs/", GET=self.jobs),
            api.route("/jobs/{id}/", GET=self.job),
            api.route("/jobs/{id}/stop/", POST=self.stop_job),
            api.route("/nodes/", GET=self.nodes),
            api.route("/nodes/{id}/", GET=self.node),
            api.route("/tasks/", GET=self.tasks),
            api.route("/tasks/{id}/", GET=self.task),
            api.route("/serve_applications/", GET=self.applications),
            api.route("/serve_applications/{id}/", GET=self.application, DELETE=self.delete_application),
        ]

    async def health(self, _request: Request, _body: object) -> object:
        """`GET health/`: healthy when the cluster is."""
        await self._dashboard.get("/api/version")
        return {"status": "ok"}

    async def jobs(self, _request: Request, _body: object) -> object:
        """`GET jobs/`"""
        return _results([_job_with_id(job) for job in await self._dashboard.get("/api/jobs/")])

    async def job(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/`"""
        return _job_with_id(await self._dashboard.get(job_path(request)))

    async def stop_job(self, request: Request, _body: object) -> object:
        """`POST jobs/{id}/stop/`"""
        answer = await self._dashboard.post(f"{job_path(request)}/stop")
        if not answer["stopped"]:
            raise api_error(400, "The job has already ended.")
        return answer

    async def nodes(self, _request: Request, _body: object) -> object:
        """`GET nodes/`"""
        nodes = [_with_id(node, "node_id") for node in await self._dashboard.list_state("nodes")]
        return _results([_with_life(node) for node in nodes])

    async def node(self, request: Request, _body: object) -> object:
        """`GET nodes/{id}/`"""
        return _with_life(await self._find(request, "nodes", "node_id"))

    async def tasks(self, _request: Request, _body: object) -> object:
        """`GET tasks/`"""
        return _results([_with_id(task, "task_id") for task in await self._dashboard.list_state("tasks")])

    async def task(self, request: Request, _body: object) -> object:
        """`GET tasks/{id}/`"""
        return await self._find(request, "tasks", "task_id")

    async def applications(self, _request: Request, _body: object) -> object:
        """`GET serve_applications/`"""
        return _results(list((await self._dashboard.applications()).values()))

    async def application(self, request: Request, _body: object) -> object:
        """`GET serve_applications/{name}/`"""
        return await self._application(request)

    async def delete_application(self, request: Request, _body: object) -> object:
        """`DELETE serve_applications/{name}/`, in a subprocess, because only a Ray driver can delete one."""
        name = (await self._application(request))["name"]
        driver = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker.sandbox.serve_driver", "delete", name
        )
        try:
            failed = await asyncio.wait_for(driver.wait(), DELETE_TIMEOUT_SECONDS)
        except TimeoutError:
            driver.kill()
            raise api_error(504, "Ray did not delete the application in time.") from None
        if failed:
            raise api_error(502, "Ray did not delete the application.")
        return Response(status_code=204)

    async def _application(self, request: Request) -> dict[str, Any]:
        found = (await self._dashboard.applications()).get(request.path_params["id"])
        if found is None:
            raise api_error(404, "Not found.")
        return found

    async def _find(self, request: Request, kind: str, key: str) -> dict[str, Any]:
        # Not Ray's own filter, which answers 500 to a malformed id.
        for item in await self._dashboard.list_state(kind, detail="1", limit="10000"):
            if item[key] == request.path_params["id"]:
                return _with_id(item, key)
        raise api_error(404, "Not found.")


def _job_with_id(job: dict[str, Any]) -> dict[str, Any]:
    return {"id": job.get("submission_id") or job.get("job_id"), **job}


def _with_life(node: dict[str, Any]) -> dict[str, Any]:
    return {**node, "alive": node.get("state") == "ALIVE"}


def _with_id(item: dict[str, Any], key: str) -> dict[str, Any]:
    return {"id": item[key], **item}


def _results(items: Sequence[object]) -> dict[str, object]:
    return {"results": items}
