"""The pre-processor that a run needs, and what the backend's records of its applications mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from shared.messages import ToTaskParams
from shared.statuses import JobStatus, ServeApplicationStatus
from worker.platform import ClientError, MalformedResponseError, NotFoundError, redact, shorten
from worker.platform.redaction import redact_value
from worker.runs.model import RunFailedError

Bucket = Literal["running", "failed", "pending"]
Record = Mapping[str, Any]

FAILED_STATUSES = frozenset(
    {
        ServeApplicationStatus.DEPLOY_FAILED,
        ServeApplicationStatus.UNHEALTHY,
        ServeApplicationStatus.UNAVAILABLE,
    }
)
LONGEST_WORD = 100
"""Characters of a status or an id that are kept."""
_NAMES = ("name", "app_name", "release", "plugin")
"""Keys of a record's `data` that may hold a release as `code@version`."""


def classify_serve_app(results: object) -> tuple[Bucket, str | None]:
    """`('running', None)`, `('failed', status)` or `('pending', None)`.

    RUNNING of any record wins over failures of others; an empty or malformed list is pending.
    """
    statuses = [record.get("status") for record in records_of(results)]
    if ServeApplicationStatus.RUNNING in statuses:
        return "running", None
    for status in statuses:
        if isinstance(status, str) and status in FAILED_STATUSES:
            return "failed", str(status)
    return "pending", None


def records_of(results: object) -> list[Record]:
    """The records of a list, bare or in `results`; what is no record is left out."""
    found = results.get("results") if isinstance(results, Mapping) else results
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    return [record for record in found if isinstance(record, Mapping)]


def of_release(records: Sequence[Record], code: str, version: str) -> list[Record]:
    """Without those whose `data` names another release of the same plugin."""
    return [record for record in records if not _names_another(record.get("data"), code, version)]


def _names_another(data: object, code: str, version: str) -> bool:
    if not isinstance(data, Mapping):
        return False
    named = data.get("version")
    if isinstance(named, str | int | float) and str(named) != version:
        return True
    texts = [data.get(key) for key in _NAMES]
    return any(
        isinstance(text, str) and text.startswith(f"{code}@") and text != f"{code}@{version}"
        for text in texts
    )


def snapshot_of(records: Sequence[Record]) -> dict[str, str]:
    """How the records stood at the dispatch: status by id."""
    return {_told(record.get("id")): _told(record.get("status")) for record in records}


def counts_as_failed(record: Record, job: str | None, snapshot: Mapping[str, str]) -> bool:
    """A failed record counts if it is the dispatched job's, or is new or changed since the dispatch.

    An old failure must not kill a new start.
    """
    if job is not None and str(record.get("job")) == job:
        return True
    return snapshot.get(_told(record.get("id"))) != _told(record.get("status"))


def _told(value: object) -> str:
    # It is kept in Redis, and what a backend says may be what it was sent.
    return shorten(redact(str(value)), LONGEST_WORD)


GONE: Final = "GONE"
"""Stands for the status of a job that the backend does not know, or not any more."""

JobState = JobStatus | Literal["GONE"]


class Backend(Protocol):
    """The calls of the backend that finding and starting a pre-processor needs."""

    def get_plugin_release(self, release: int | str) -> dict[str, Any]: ...
    def list_serve_applications(self, **query: Any) -> dict[str, Any]: ...
    def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any: ...
    def get_job(self, job: int | str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PreProcessor:
    """A release by code and version, with its config, on an agent."""

    code: str
    version: str
    config: dict[str, Any]
    agent: int

    @property
    def release(self) -> str:
        """`code@version`."""
        return f"{self.code}@{self.version}"

    def to_finding(self) -> dict[str, Any]:
        """As what a run found out."""
        # Kept in Redis, and a config may hold what the release's author wrote down for its replicas alone.
        config = redact_value(self.config)
        return {"code": self.code, "version": self.version, "config": config, "agent": self.agent}

    @classmethod
    def from_finding(cls, finding: Mapping[str, Any]) -> "PreProcessor":
        """The inverse of `to_finding`."""
        return cls(finding["code"], finding["version"], finding.get("config") or {}, finding["agent"])

    def requests_at_once(self, params: ToTaskParams) -> int:
        """What its release declares as `serve_options.batch.max_batch_size`, else the run's `batch_size`."""
        declared: object = self.config
        for name in ("actions", "inference", "serve_options", "batch", "max_batch_size"):
            declared = declared.get(name) if isinstance(declared, Mapping) else None
        return declared if type(declared) is int and declared >= 1 else params.batch_size


def find(backend: Backend, release: int | str, agent: int) -> PreProcessor:
    """Ask the backend for the release; `RuntimeError` when it is none that could be deployed."""
    try:
        answer = backend.get_plugin_release(release)
    except NotFoundError:
        raise RunFailedError(f"Pre-processor {release} does not exist") from None
    config = answer.get("config")
    config = config if isinstance(config, dict) else {}
    code, version = config.get("code"), answer.get("version", config.get("version"))
    if not isinstance(code, str) or not code or not isinstance(version, str) or not version:
        raise RuntimeError("The pre-processor's release has no code or no version")
    return PreProcessor(code, version, config, agent)


def records(backend: Backend, target: PreProcessor) -> list[Record]:
    """The records of `target`'s applications on its agent."""
    found = backend.list_serve_applications(plugin_code=target.code, job__agent=target.agent)
    return of_release(records_of(found), target.code, target.version)


def records_if_legible(backend: Backend, target: PreProcessor) -> list[Record]:
    """The same for a first look, at which a malformed list means that nothing is known to run."""
    try:
        return records(backend, target)
    except MalformedResponseError:
        return []


def job_status(backend: Backend, job: str | None) -> JobState | None:
    """A dispatched job's status; None when there is no job yet or the backend does not say."""
    if job is None:
        return None
    try:
        return JobStatus(str(backend.get_job(job).get("status")))
    except NotFoundError:
        return GONE
    except (ClientError, OSError, ValueError):
        return None
