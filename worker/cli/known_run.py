"""What is known of a job before something is published for it: the command must not promise too much."""

from dataclasses import dataclass
from datetime import datetime

from redis import Redis

from shared.channels import job_key
from shared.statuses import JobStatus
from worker.runs.keys import stop_key


@dataclass(frozen=True)
class KnownRun:
    """A run as its public record shows it; `status` is None where there is none."""

    status: JobStatus | None
    updated: str = ""
    stop_is_remembered: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether its job is over."""
        return self.status is not None and self.status.is_final

    @classmethod
    def of(cls, redis: Redis, job: str) -> "KnownRun":
        """Read the record of `job`."""
        record = redis.hgetall(job_key(job))
        stopped = bool(redis.exists(stop_key(job)))
        if not record:
            return cls(None, stop_is_remembered=stopped)
        return cls(JobStatus(record["status"]), _local(float(record["updated"])), stopped)


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
