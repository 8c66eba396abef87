"""The pre-processor that a run needs, and how the backend's records of its Serve applications are read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from shared.messages import JsonObject, ToTaskParams
from shared.statuses import JobStatus, ServeApplicationStatus, is_failed_status
from worker.platform import ClientError, MalformedResponseError, NotFoundError, clean, redact, shorten
from worker.platform.redaction import redact_value
from worker.plugins.requests import DEPLOYED_ACTIONS, MAX_ONGOING_REQUESTS
from worker.runs.model import RunFailedError, backend_job_id

Bucket = Literal["running", "failed", "pending"]
Record = Mapping[str, Any]

MAX_REASON_CHARS = 2_000
"""Of another job's error in the error of a run that has waited for it."""
MAX_STORED_CHARS = 100
"""A longer status or id of a record is cut."""
_RELEASE_KEYS = ("name", "app_name", "release", "plugin")
"""Keys of a record's `data` whose value may be a release, `code@version`."""


def classify_serve_app(results: object) -> tuple[Bucket, str | None]:
    """`('running', None)`, `('failed', status)` or `('pending', None)`.

    One RUNNING record wins over failed ones; an empty or malformed list is pending.
    """
    statuses = [record.get("status") for record in parse_records(results)]
    if ServeApplicationStatus.RUNNING in statuses:
        return "running", None
    for status in statuses:
        if is_failed_status(status):
            return "failed", str(status)
    return "pending", None


def parse_records(results: object) -> list[Record]:
    """The records of an answer: a list, or a mapping with the list in `results`; other items are dropped."""
    found = results.get("results") if isinstance(results, Mapping) else results
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    return [record for record in found if isinstance(record, Mapping)]


def exclude_other_releases(records: Sequence[Record], code: str, version: str) -> list[Record]:
    """The records without those whose `data` names another release of the same plugin."""
    return [record for record in records if not _names_other_release(record.get("data"), code, version)]


def _names_other_release(data: object, code: str, version: str) -> bool:
    if not isinstance(data, Mapping):
        return False
    named = data.get("version")
    if isinstance(named, str | int | float) and str(named) != version:
        return True
    texts = [data.get(key) for key in _RELEASE_KEYS]
    return any(
        isinstance(text, str) and text.startswith(f"{code}@") and text != f"{code}@{version}"
        for text in texts
    )


def snapshot_of(records: Sequence[Record]) -> dict[str, str]:
    """Status by id of the records, to find those that change after a dispatch."""
    return {_stored_text(record.get("id")): _stored_text(record.get("status")) for record in records}


def counts_as_failed(record: Record, job: str | None, snapshot: Mapping[str, str]) -> bool:
    """Whether a failure of this record is one of the dispatched deployment.

    It is if the record belongs to the dispatched job, or is new or has changed since the snapshot: a failure
    from before the dispatch must not fail the new start.
    """
    if job is not None and str(record.get("job")) == job:
        return True
    return snapshot.get(_stored_text(record.get("id"))) != _stored_text(record.get("status"))


def _stored_text(value: object) -> str:
    # It is stored in Redis, and a backend may echo secrets that it was sent.
    return shorten(redact(str(value)), MAX_STORED_CHARS)


GONE: Final = "GONE"
"""The status of a job that the backend does not know, or no longer knows."""

JobState = JobStatus | Literal["GONE"]


class Backend(Protocol):
    """The methods of a backend client that finding and starting a pre-processor needs."""

    def get_plugin_release(self, release: int | str) -> JsonObject: ...
    def serve_application_pages(self, **query: Any) -> Iterator[JsonObject]: ...
    def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any: ...
    def get_job(self, job: int | str) -> JsonObject: ...


def application_key(code: str, version: object, agent: object) -> str:
    """Names the Serve application of a release on the cluster of an agent."""
    return f"{agent}:{code}@{version}"


@dataclass(frozen=True)
class PreProcessor:
    """A release, with its config, on the cluster of an agent."""

    code: str
    version: str
    config: JsonObject
    agent: int

    @property
    def release(self) -> str:
        """`code@version`."""
        return f"{self.code}@{self.version}"

    def to_json(self) -> dict[str, object]:
        """For the run's record in Redis."""
        # A config may hold secrets that the release's author meant for its replicas alone.
        config = redact_value(self.config)
        return {"code": self.code, "version": self.version, "config": config, "agent": self.agent}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "PreProcessor":
        """The inverse of `to_json`."""
        return cls(stored["code"], stored["version"], stored.get("config") or {}, stored["agent"])

    def concurrent_requests(self, params: ToTaskParams) -> int:
        """Requests sent at once: what the release's replicas batch, else the run's `batch_size`.

        A run that does not say it gets what one replica takes at once, its `max_ongoing_requests`.
        """
        declared = self._serve_option("batch", "max_batch_size")
        if declared is not None:
            return declared
        if "batch_size" in params.model_fields_set:
            return params.batch_size
        return self._serve_option("max_ongoing_requests") or MAX_ONGOING_REQUESTS

    @property
    def application(self) -> str:
        """See `application_key`."""
        return application_key(self.code, self.version, self.agent)

    def _serve_option(self, *path: str) -> int | None:
        """The positive integer at this place of the `deployment`'s options, else of the `inference`'s.

        They count in this order for what is deployed, too.
        """
        for action in DEPLOYED_ACTIONS:
            declared: object = self.config
            for name in ("actions", action, "serve_options", *path):
                declared = declared.get(name) if isinstance(declared, Mapping) else None
            if type(declared) is int and declared >= 1:
                return declared
        return None


def find_pre_processor(backend: Backend, release: int | str, agent: int) -> PreProcessor:
    """Look the release up in the backend.

    Raises `RunFailedError` when it does not exist, and `RuntimeError` when it has no code or no version.
    """
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


def list_records(backend: Backend, target: PreProcessor) -> list[Record]:
    """The application records of `target` on its agent, up to the first page with a RUNNING one.

    Raises `ClientError`.
    """
    records: list[Record] = []
    for page in backend.serve_application_pages(**_query(target)):
        records += _own_records(page, target)
        if classify_serve_app(records)[0] == "running":
            break
    return records


def list_recent_records(backend: Backend, target: PreProcessor, job: str | None, poll: int) -> list[Record]:
    """The records that show what becomes of the deployment `job`, and no history; raises `ClientError`.

    A pre-processor that is deployed again and again has a long history, in whatever order. Read are the first
    page, the records of the job, the last page, and one of the others. That is another one in each `poll`,
    because an application of long ago may run again.
    """
    query = _query(target)
    first = next(iter(backend.serve_application_pages(**query)), {})
    records = _own_records(first, target)
    if not first.get("next"):
        return records
    narrowed: list[dict[str, Any]] = [{"job": backend_job_id(job)}] if job else []
    for more in [*narrowed, *({"page": number} for number in _page_numbers(first, poll))]:
        if classify_serve_app(records)[0] == "running":
            break
        # The history may have become shorter.
        with suppress(NotFoundError):
            records += _own_records(next(iter(backend.serve_application_pages(**query, **more)), {}), target)
    return records


def _page_numbers(first: Mapping[str, Any], poll: int) -> list[int]:
    """The last page, and one between it and the first; the second where the count of records is not known."""
    count, size = first.get("count"), len(parse_records(first))
    last = -(-count // size) if isinstance(count, int) and size else 2
    return [last, 2 + poll % (last - 2)] if last > 2 else [2]


def _query(target: PreProcessor) -> dict[str, Any]:
    return {"plugin_code": target.code, "job__agent": target.agent}


def _own_records(page: object, target: PreProcessor) -> list[Record]:
    return exclude_other_releases(parse_records(page), target.code, target.version)


def list_recent_records_or_empty(backend: Backend, target: PreProcessor) -> list[Record]:
    """The same for a first look, but empty when the answer is malformed: nothing is known to run then."""
    try:
        return list_recent_records(backend, target, None, 0)
    except MalformedResponseError:
        return []


def job_status(backend: Backend, job: str | None) -> JobState | None:
    """A dispatched job's status; None when there is no job yet or the backend's answer is an error."""
    if job is None:
        return None
    try:
        return JobStatus(str(backend.get_job(job).get("status")))
    except NotFoundError:
        return GONE
    except (ClientError, OSError, ValueError):
        return None


def explained(failure: str, backend: Backend, job: str | None) -> str:
    """The failure of a dispatched deployment, with the error of its job where that is FAILED."""
    if job is None:
        return failure
    try:
        found = backend.get_job(job)
    except (ClientError, OSError, ValueError):
        return failure
    result = found.get("result")
    error = result.get("error") if isinstance(result, Mapping) else None
    if found.get("status") != JobStatus.FAILED or not isinstance(error, str) or not error:
        return failure
    return f"{failure}: {shorten(clean(error), MAX_REASON_CHARS)}"
