"""What the backend's records of applications mean: running, failed, or not yet."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shared.statuses import ServeApplicationStatus
from worker.platform import redact, shorten

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
