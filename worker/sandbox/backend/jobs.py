"""Jobs with their lines of log, and the records of applications, kept current by asking the agent."""

import asyncio
import contextlib
import time
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.statuses import JobStatus, ServeApplicationStatus
from worker.sandbox.api import Api, Refusal, answer, bounds, checked, identifier, paged, refusal
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
        """Their addresses."""
        return [
            api.route("/jobs/{id}/", GET=self.get, PATCH=self.patch),
            api.route("/logs/", POST=self.log),
        ]

    async def get(self, request: Request, _body: object) -> object:
        """`GET jobs/{id}/`"""
        return self._job(request)

    async def patch(self, request: Request, body: object) -> object:
        """`PATCH jobs/{id}/`; a final status is for ever, but the same end may be told twice.

        A job that failed before it ever ran, as one does whose message was refused, may be started after all.
        """
        job = self._job(request)
        changes = checked(body, JOB_FIELDS)
        if changes.get("status", "PENDING") not in set(JobStatus):
            raise Refusal(400, {"status": [f'"{changes["status"]}" is not a valid choice.']})
        if JobStatus(job["status"]).is_final and not _starts_after_all(job, changes):
            if changes.get("status") != job["status"] or any(job[key] != changes[key] for key in changes):
                raise refusal(400, f"The job has ended: {job['status']}.")
            return job
        self._state.update("jobs", job["id"], {**changes, "updated": time.time()})
        return self._job(request)

    async def log(self, _request: Request, body: object) -> Response:
        """`POST logs/`: one entry or a list."""
        given = body if isinstance(body, list) else [body]
        entries = [checked(entry, LOG_FIELDS, ["event", "data", "datetime", "job"]) for entry in given]
        for job in {entry["job"] for entry in entries}:
            if self._state.job(as_id(job)) is None:
                raise Refusal(400, {"job": [f'Invalid pk "{job}" - object does not exist.']})
        with self._state.transaction():
            ids = [self._state.insert("logs", entry) for entry in entries]
        shown = [{"id": id, **entry} for id, entry in zip(ids, entries, strict=True)]
        return answer(shown if isinstance(body, list) else shown[0], 201)

    def _job(self, request: Request) -> Row:
        job = self._state.job(identifier(request))
        if job is None:
            raise refusal(404, "No Job matches the given query.")
        return job


def _starts_after_all(job: Row, changes: Row) -> bool:
    never_ran = job["status"] == JobStatus.FAILED and job["progress_record"] is None
    return never_ran and changes.get("status") == JobStatus.RUNNING


def as_id(job: int | str) -> int | str:
    """The text of an integer names the same job as the integer."""
    return int(job) if isinstance(job, str) and job.isascii() and job.isdigit() else job


INTERVAL_SECONDS: Final = 0.5
FRESH_SECONDS: Final = 0.05
# Records in these statuses may change without anybody asking for them.
UNSETTLED: Final = ("NOT_STARTED", "DEPLOYING", "DELETING", "UNHEALTHY")


class AgentFeed:
    """What the agent says about its applications; `agent` is the id of its record."""

    def __init__(self, state: State, agent: int, client: httpx.AsyncClient) -> None:
        self._state, self._agent, self._client = state, agent, client
        self._applications: dict[str, Row] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed = 0.0

    def route_prefix(self, application: str) -> str | None:
        """Where the cluster serves an application, as far as the agent has said."""
        return self._applications.get(application, {}).get("route_prefix")

    async def refresh(self) -> None:
        """Bring all records up to date; callers that come at the same time share one question."""
        if time.monotonic() - self._refreshed < FRESH_SECONDS:
            self._write()  # a record may be younger than the news
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def run(self) -> None:
        """Keep unsettled records current for as long as the backend lives."""
        unsettled = ", ".join(f"'{status}'" for status in UNSETTLED)
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            if self._state.value(f"SELECT 1 FROM serve_applications WHERE status IN ({unsettled})"):  # noqa: S608
                await self.refresh()

    async def _refresh(self) -> None:
        agent = self._state.row("SELECT url, token FROM agents WHERE id = ?", self._agent)
        if agent is None or agent["url"] is None:
            return
        # An agent that is away says nothing about its applications.
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            response = await self._client.get(
                f"{agent['url']}/serve_applications/",
                headers={"Authorization": agent["token"] or ""},
                timeout=5,
            )
            found = response.raise_for_status().json()["results"]
            self._applications = {application["name"]: application for application in found}
            self._write()
            self._refreshed = time.monotonic()

    def _write(self) -> None:
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
