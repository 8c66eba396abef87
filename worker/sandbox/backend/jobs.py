"""Jobs and their logs, and the records of Serve applications, which are synchronized with the agent."""

import asyncio
import contextlib
import time
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.statuses import JobStatus, ServeApplicationStatus
from worker.sandbox.api import (
    Api,
    ApiError,
    api_error,
    json_response,
    page_params,
    page_response,
    path_id,
    validated,
)
from worker.sandbox.backend.state import Row, State

JOB_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "status": str,
    "progress_record": (dict, type(None)),
    "metrics_record": (dict, type(None)),
    "console_logs": (dict, list, type(None)),
    "result": object,
    "meta": (dict, type(None)),
}
LOG_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "event": str,
    "data": (dict, list, str),
    "datetime": str,
    "job": (int, str),
    "step": (str, type(None)),
    "level": (str, type(None)),
}


class Jobs:
    """Handlers of `jobs/` and `logs/`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def routes(self, api: Api) -> list[Route]:
        """The routes."""
        return [
            api.route("/jobs/{id}/", GET=self.get, PATCH=self.patch),
            api.route("/logs/", POST=self.log),
        ]

    async def get(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/`"""
        return self._job(request)

    async def patch(self, request: Request, body: object) -> object:
        """`PATCH jobs/{id}/`; a final status does not change, but the same end may be reported twice.

        A job that failed before it ran, such as one whose message was rejected, may still be started.
        """
        job = self._job(request)
        changes = validated(body, JOB_FIELDS)
        if changes.get("status", "PENDING") not in set(JobStatus):
            raise ApiError(400, {"status": [f'"{changes["status"]}" is not a valid choice.']})
        if JobStatus(job["status"]).is_final and not _is_late_start(job, changes):
            if changes.get("status") != job["status"] or any(job[key] != changes[key] for key in changes):
                raise api_error(400, f"The job has ended: {job['status']}.")
            return job
        self._state.update("jobs", job["id"], {**changes, "updated": time.time()})
        return self._job(request)

    async def log(self, _request: Request, body: object) -> Response:
        """`POST logs/`: one entry or a list."""
        given = body if isinstance(body, list) else [body]
        entries = [validated(entry, LOG_FIELDS, ["event", "data", "datetime", "job"]) for entry in given]
        for job in {entry["job"] for entry in entries}:
            if self._state.job(parse_job_id(job)) is None:
                raise ApiError(400, {"job": [f'Invalid pk "{job}" - object does not exist.']})
        with self._state.transaction():
            ids = [self._state.insert("logs", entry) for entry in entries]
        shown = [{"id": id, **entry} for id, entry in zip(ids, entries, strict=True)]
        return json_response(shown if isinstance(body, list) else shown[0], 201)

    def _job(self, request: Request) -> Row:
        job = self._state.job(path_id(request))
        if job is None:
            raise api_error(404, "No Job matches the given query.")
        return job


def _is_late_start(job: Row, changes: Row) -> bool:
    never_ran = job["status"] == JobStatus.FAILED and job["progress_record"] is None
    return never_ran and changes.get("status") == JobStatus.RUNNING


def parse_job_id(job: int | str) -> int | str:
    """A text of digits is the same id as the integer."""
    return int(job) if isinstance(job, str) and job.isascii() and job.isdigit() else job


SYNC_INTERVAL_SECONDS: Final = 0.5
MIN_SYNC_SECONDS: Final = 0.05
# Records with these statuses are synchronized in the background.
CHANGING_STATUSES: Final = ("NOT_STARTED", "DEPLOYING", "DELETING", "UNHEALTHY")


class ApplicationSync:
    """Copies the statuses of the agent's applications into their records; `agent` is the id of the agent."""

    def __init__(self, state: State, agent: int, client: httpx.AsyncClient) -> None:
        self._state, self._agent, self._client = state, agent, client
        self._applications: dict[str, Row] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed = 0.0

    def route_prefix(self, application: str) -> str | None:
        """The route of an application on the cluster, if the agent has reported it."""
        return self._applications.get(application, {}).get("route_prefix")

    async def refresh(self) -> None:
        """Update all records; concurrent callers share one request to the agent."""
        if time.monotonic() - self._refreshed < MIN_SYNC_SECONDS:
            self._update_records()  # a record may have been added since
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def run(self) -> None:
        """Update records whose status may change, until cancelled."""
        changing = ", ".join(f"'{status}'" for status in CHANGING_STATUSES)
        while True:
            await asyncio.sleep(SYNC_INTERVAL_SECONDS)
            if self._state.value(f"SELECT 1 FROM serve_applications WHERE status IN ({changing})"):  # noqa: S608
                await self.refresh()

    async def _refresh(self) -> None:
        agent = self._state.row("SELECT url, token FROM agents WHERE id = ?", self._agent)
        if agent is None or agent["url"] is None:
            return
        # Without an answer of the agent, the records stay as they are.
        with contextlib.suppress(httpx.HTTPError, ValueError, RecursionError, KeyError, TypeError):
            response = await self._client.get(
                f"{agent['url']}/serve_applications/",
                headers={"Authorization": agent["token"] or ""},
                timeout=5,
            )
            found = response.raise_for_status().json()["results"]
            self._applications = {application["name"]: application for application in found}
            self._update_records()
            self._refreshed = time.monotonic()

    def _update_records(self) -> None:
        records = self._state.rows(
            "SELECT serve_applications.* FROM serve_applications JOIN jobs ON jobs.id = job WHERE agent = ?",
            self._agent,
        )
        for record in records:
            application = self._applications.get(record["application"])
            if application is not None:
                status = application["status"]
            elif record["seen"]:
                status = ServeApplicationStatus.UNAVAILABLE
            else:
                continue
            if record["status"] != status or not record["seen"]:
                self._state.update("serve_applications", record["id"], {"status": str(status), "seen": 1})


RELEASE_SQL: Final = "COALESCE(plugin, application)"
"""A job that a test has created names no plugin; then the record's application is the release."""

FILTER_SQL: Final = {
    "plugin_code": f"? IN ({RELEASE_SQL}, substr({RELEASE_SQL}, 1, instr({RELEASE_SQL}, '@') - 1))",
    "job__agent": "agent = ?",
    "job": "job = ?",
    "status": "serve_applications.status = ?",
}


class Applications:
    """Handlers of `serve_applications/`."""

    def __init__(self, state: State, sync: ApplicationSync) -> None:
        self._state, self._sync = state, sync

    def routes(self, api: Api) -> list[Route]:
        """The routes."""
        return [api.route("/serve_applications/", GET=self.list, POST=self.create)]

    async def list(self, request: Request, _body: object) -> object:
        """`GET serve_applications/`; filters: `plugin_code`, `job__agent`, `job`, `status`."""
        await self._sync.refresh()
        given = {name: request.query_params[name] for name in FILTER_SQL if name in request.query_params}
        values = [
            parse_job_id(value) if name in ("job", "job__agent") else value for name, value in given.items()
        ]
        where = " AND ".join(FILTER_SQL[name] for name in given) or "1"
        rows = self._state.rows(
            f"SELECT serve_applications.id, serve_applications.status, data, job FROM serve_applications"  # noqa: S608
            f" JOIN jobs ON jobs.id = job WHERE {where} ORDER BY serve_applications.id",
            *values,
        )
        page, size = page_params(request)
        return page_response(request, len(rows), rows[(page - 1) * size : page * size])

    async def create(self, _request: Request, body: object) -> Response:
        """`POST serve_applications/`; as on the platform, a second request creates a second record."""
        given = validated(body, {"job": (int, str), "status": str, "data": (dict, type(None))}, ["job"])
        status = given.get("status", ServeApplicationStatus.DEPLOYING.value)
        if status not in set(ServeApplicationStatus):
            raise ApiError(400, {"status": [f'"{status}" is not a valid choice.']})
        job = self._state.job(parse_job_id(given["job"]))
        if job is None:
            raise ApiError(400, {"job": [f'Invalid pk "{given["job"]}" - object does not exist.']})
        data = given.get("data")
        record = {"job": job["id"], "status": status, "data": data, "created": time.time()}
        id = self._state.insert("serve_applications", {**record, "application": _application_name(data, job)})
        await self._sync.refresh()
        shown = self._state.row("SELECT id, status, data, job FROM serve_applications WHERE id = ?", id)
        return json_response(shown, 201)


def _application_name(data: Row | None, job: Row) -> str | None:
    """The application's name on the cluster: that in the record, else the release that the job deployed."""
    named = (data or {}).get("name")
    return named if isinstance(named, str) else job["plugin"]
