"""The pre-processor of a run: which release, on which agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from shared.statuses import JobStatus
from worker.platform import ClientError, MalformedResponseError, NotFoundError
from worker.platform.redaction import redact_value
from worker.pre_processor.classify import Record, of_release, records_of
from worker.runs.model import RunFailedError

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
        return cls(finding["code"], finding["version"], finding["config"], finding["agent"])


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
