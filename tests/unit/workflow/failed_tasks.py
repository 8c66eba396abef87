"""An ended run some of whose tasks failed."""

from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from worker.runs.model import End
from worker.runs.runs import Runs
from worker.to_task.ledger import RedisLedger, TaskOutcome

PARAMS = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "s"}


def add_failed_run(redis: FakeRedis, runs: Runs, job: str, *failed: int, total: int = 9) -> None:
    """Add a run of to_task that has ended, in which these tasks failed."""
    kwargs = {"job": job, "plugin": "digits@1.0.0", "params": PARAMS, "tenant": "acme", "dry_run": True}
    runs.store.accept(ToTaskMessage.model_validate(kwargs), "to_task")
    redis.hset(job_key(job), mapping={"total": total, "success": total - len(failed)})
    outcomes = [TaskOutcome(index, task, "broken") for index, task in enumerate(failed)]
    RedisLedger(redis, job).record(outcomes)
    runs.finish(job, End(JobStatus.SUCCEEDED, {}))


def expire_run(redis: FakeRedis, job: str) -> None:
    """Let the run's own keys expire, as they do a day after its end."""
    redis.delete(*redis.keys(f"synapse:jobs:{{{job}}}*"))
