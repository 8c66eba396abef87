"""Jobs and the lines of log that are posted about them."""

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.statuses import JobStatus
from worker.sandbox.backend.state import Row, State
from worker.sandbox.http import Api, Refusal, answer, checked, identifier, refusal

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
