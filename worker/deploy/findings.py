"""What a deployment's steps leave for each other in the run's record."""

from dataclasses import asdict, dataclass
from typing import Any

from worker.runs.model import Run
from worker.runs.runs import Runs

PLAN = "plan"
CAPACITY = "capacity"
SUBMISSION = "submission"


@dataclass(frozen=True)
class Submission:
    """Written down before Serve is told: whether there was an application of that name, and the time."""

    existed: bool
    at: float

    def note(self, run: Run, runs: Runs) -> None:
        """Keep it."""
        runs.store.note(run.job, SUBMISSION, asdict(self))


def plan_of(run: Run) -> dict[str, Any]:
    """What the author's action planned: `app_name`, `route_prefix`, options, `digest`."""
    plan: dict[str, Any] = run.findings[PLAN]
    return plan


def submission_of(run: Run) -> Submission | None:
    """The submission, once there was one."""
    found = run.findings.get(SUBMISSION)
    return Submission(**found) if found else None


def redis_now(runs: Runs) -> float:
    """Redis's clock, in seconds."""
    seconds, microseconds = runs.redis.time()
    return float(seconds + microseconds / 1e6)
