"""Ray's jobs, nodes, tasks and Serve applications, as the agent shows them."""

import asyncio
import sys
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.sandbox.agent.dashboard import Dashboard, job_path
from worker.sandbox.http import Api, refusal

DELETE_SECONDS = 60


class Cluster:
    """Handlers of what lies on the cluster."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def routes(self, api: Api) -> list[Route]:
        """Their addresses."""
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
        """`GET health/`: well when the cluster is."""
        await self._dashboard.get("/api/version")
        return {"status": "ok"}

    async def jobs(self, _request: Request, _body: object) -> object:
        """`GET jobs/`"""
        return _results([_job(job) for job in await self._dashboard.get("/api/jobs/")])

    async def job(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/`"""
        return _job(await self._dashboard.get(job_path(request)))

    async def stop_job(self, request: Request, _body: object) -> object:
        """`POST jobs/{id}/stop/`"""
        answered = await self._dashboard.post(f"{job_path(request)}/stop")
        if not answered["stopped"]:
            raise refusal(400, "The job has already ended.")
        return answered

    async def nodes(self, _request: Request, _body: object) -> object:
        """`GET nodes/`"""
        return _results([_named(node, "node_id") for node in await self._dashboard.listed("nodes")])

    async def node(self, request: Request, _body: object) -> object:
        """`GET nodes/{id}/`"""
        return await self._one(request, "nodes", "node_id")

    async def tasks(self, _request: Request, _body: object) -> object:
        """`GET tasks/`"""
        return _results([_named(task, "task_id") for task in await self._dashboard.listed("tasks")])

    async def task(self, request: Request, _body: object) -> object:
        """`GET tasks/{id}/`"""
        return await self._one(request, "tasks", "task_id")

    async def applications(self, _request: Request, _body: object) -> object:
        """`GET serve_applications/`"""
        return _results(list((await self._dashboard.applications()).values()))

    async def application(self, request: Request, _body: object) -> object:
        """`GET serve_applications/{name}/`"""
        return await self._application(request)

    async def delete_application(self, request: Request, _body: object) -> object:
        """`DELETE serve_applications/{name}/`: an errand, since only a driver of Ray can delete one."""
        name = (await self._application(request))["name"]
        errand = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker.sandbox.serve", "delete", name
        )
        try:
            failed = await asyncio.wait_for(errand.wait(), DELETE_SECONDS)
        except TimeoutError:
            errand.kill()
            raise refusal(504, "Ray did not delete the application in time.") from None
        if failed:
            raise refusal(502, "Ray did not delete the application.")
        return Response(status_code=204)

    async def _application(self, request: Request) -> dict[str, Any]:
        found = (await self._dashboard.applications()).get(request.path_params["id"])
        if found is None:
            raise refusal(404, "Not found.")
        return found

    async def _one(self, request: Request, kind: str, key: str) -> dict[str, Any]:
        # Ray's own filter answers 500 to what does not look like one of its ids.
        for item in await self._dashboard.listed(kind, detail="1", limit="10000"):
            if item[key] == request.path_params["id"]:
                return _named(item, key)
        raise refusal(404, "Not found.")


def _job(job: dict[str, Any]) -> dict[str, Any]:
    return {"id": job.get("submission_id") or job.get("job_id"), **job}


def _named(item: dict[str, Any], key: str) -> dict[str, Any]:
    return {"id": item[key], **item}


def _results(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"results": items}
