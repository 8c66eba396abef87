"""The records of applications on Ray Serve."""

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.statuses import ServeApplicationStatus
from worker.sandbox.backend.agent_feed import AgentFeed
from worker.sandbox.backend.jobs import as_id
from worker.sandbox.backend.state import Row, State
from worker.sandbox.http import Api, Refusal, answer, bounds, checked, paged

RELEASE: Final = "COALESCE(plugin, application)"
"""A job that somebody made by hand names no plugin; the application of its record does."""

FILTERS: Final = {
    "plugin_code": f"? IN ({RELEASE}, substr({RELEASE}, 1, instr({RELEASE}, '@') - 1))",
    "job__agent": "agent = ?",
    "job": "job = ?",
    "status": "serve_applications.status = ?",
}


class Applications:
    """Handlers of `serve_applications/`."""

    def __init__(self, state: State, feed: AgentFeed) -> None:
        self._state, self._feed = state, feed

    def routes(self, api: Api) -> list[Route]:
        """Their addresses."""
        return [api.route("/serve_applications/", GET=self.list, POST=self.create)]

    async def list(self, request: Request, _body: object) -> object:
        """`GET serve_applications/`; filters: `plugin_code`, `job__agent`, `job`, `status`."""
        await self._feed.refresh()
        given = {name: request.query_params[name] for name in FILTERS if name in request.query_params}
        values = [as_id(value) if name in ("job", "job__agent") else value for name, value in given.items()]
        where = " AND ".join(FILTERS[name] for name in given) or "1"
        rows = self._state.rows(
            f"SELECT serve_applications.id, serve_applications.status, data, job FROM serve_applications"  # noqa: S608
            f" JOIN jobs ON jobs.id = job WHERE {where} ORDER BY serve_applications.id",
            *values,
        )
        page, size = bounds(request)
        return paged(request, len(rows), rows[(page - 1) * size : page * size])

    async def create(self, _request: Request, body: object) -> Response:
        """`POST serve_applications/`; as the platform, it makes a second record for a second post."""
        given = checked(body, {"job": (int, str), "status": str, "data": (dict, type(None))}, ["job"])
        status = given.get("status", ServeApplicationStatus.DEPLOYING.value)
        if status not in set(ServeApplicationStatus):
            raise Refusal(400, {"status": [f'"{status}" is not a valid choice.']})
        job = self._state.job(as_id(given["job"]))
        if job is None:
            raise Refusal(400, {"job": [f'Invalid pk "{given["job"]}" - object does not exist.']})
        data = given.get("data")
        record = {"job": job["id"], "status": status, "data": data, "created": time.time()}
        id = self._state.insert("serve_applications", {**record, "application": _name(data, job)})
        await self._feed.refresh()
        shown = self._state.row("SELECT id, status, data, job FROM serve_applications WHERE id = ?", id)
        return answer(shown, 201)


def _name(data: Row | None, job: Row) -> str | None:
    """The application's name on the cluster: what the record says, else the release that the job deployed."""
    named = (data or {}).get("name")
    return named if isinstance(named, str) else job["plugin"]
