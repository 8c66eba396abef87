"""What the page shows beside the runs: read when a browser asks for it, at the cost of a few commands.

All of it is synchronous and called in threads. Texts that others wrote come out cleaned.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from redis import Redis

from shared.channels import job_key
from shared.statuses import JobStatus, is_final_status
from worker.console.agents_and_workers import MAX_REASON_CHARS, AgentsAndWorkers
from worker.console.live_runs import read_change
from worker.monitoring.redis_metrics import queues_at
from worker.platform import clean, redact, shorten
from worker.pre_processor.waitlist import Waitlist, waiting_runs
from worker.runs.model import UnreadableRunError, begun_steps
from worker.runs.progress import Progress, proportions_of
from worker.runs.store import RunStore
from worker.settings import Settings
from worker.to_task.ledger import MAX_FAILURE_RECORDS, RedisLedger
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.ended_runs import EndedRuns, Position
from worker.workflow.retry import is_retryable

MAX_DEAD_LETTERS: Final = 100
Json = dict[str, Any]


class Overview:
    """Reads Redis, asks agents and workers."""

    def __init__(self, redis: "Redis", broker_url: str, settings: Settings | None) -> None:
        """`settings`: those of a worker, where they are known; without them nobody but Redis is asked."""
        self._redis = redis
        self.redis_queues = queues_at(broker_url, settings.worker_agent if settings else None)
        """None where the queues are in RabbitMQ, which shows them itself."""
        cluster = AgentsAndWorkers(settings)
        self.deployments, self.workers = cluster.deployments, cluster.workers

    def run(self, job: str) -> Json | None:
        """One run: its record, its steps and their progress, and its failed tasks; None for an unknown one.

        Of a run whose own keys have expired, what is kept of ended runs: of failed tasks then only their ids.
        """
        ended_runs = EndedRuns(self._redis)
        record, ended = self._redis.hgetall(job_key(job)), ended_runs.get(job)
        if not record:
            if ended is None:
                return None
            record = ended.record
        elif not is_final_status(record.get("status")):
            ended = None  # of an earlier run of the job
        found: Json = {
            "values": read_change(record),
            "steps": [{"name": step.name, "since": step.since} for step in begun_steps(record)],
            "progress": [],
            "failures": [],
            "is_retryable": is_retryable(ended),
        }
        with suppress(LookupError, UnreadableRunError):
            run = RunStore(self._redis).load(job)
            proportions = proportions_of(run.message)
            is_complete = record.get("status") == "SUCCEEDED"
            snapshot = Progress(self._redis).snapshot(job, proportions, is_complete=is_complete)
            steps: Mapping[str, Json] = snapshot.progress["record"]["steps"]
            found["progress"] = [{"name": name, "percent": step["percent"]} for name, step in steps.items()]
            found["failures"] = [
                {"task": failure.task_id, "error": shorten(failure.error, MAX_REASON_CHARS)}
                for failure in RedisLedger(self._redis, job).failures()
            ]
        if ended is not None and not found["failures"]:
            ids = ended_runs.failed_tasks(job, 0, MAX_FAILURE_RECORDS)
            found["failures"] = [{"task": id_, "error": None} for id_ in ids]
        return found

    def ended(self, status: JobStatus | None, position: Position | None) -> Json:
        """A page of the runs that have ended, the last one first, and where the next page begins."""
        ended_runs = EndedRuns(self._redis)
        runs, following = ended_runs.page(status, position=position)
        return {
            "count": ended_runs.count(status),
            "runs": [{**read_change(run.record), "job": run.job} for run in runs],
            "next": str(following) if following else None,
        }

    def waiting(self) -> list[Json]:
        """The waiting lists of pre-processors, and how far the deployment of each has come."""
        found = []
        for name, count in waiting_runs(self._redis).items():
            waitlist = Waitlist(self._redis, name)
            dispatch = waitlist.dispatch()
            found.append(
                {
                    "release": name.target.release,
                    "agent": name.agent,
                    "tenant": name.tenant,
                    "count": count,
                    "until": waitlist.earliest_deadline(),
                    "dispatch": None
                    if dispatch is None
                    else {
                        "state": dispatch.state.value,
                        "job": dispatch.job,
                        "since": dispatch.sent_at or dispatch.claimed_at,
                        "failure": shorten(clean(dispatch.failure or ""), MAX_REASON_CHARS),
                    },
                }
            )
        return found

    def dead_letters(self) -> Json:
        """The latest dead letters, without their bodies, which may hold what nobody should see."""
        letters = DeadLetters(self._redis)
        latest = [
            {
                "id": letter.id,
                "time": letter.time,
                "task": shorten(redact(letter.task), 200),
                "job": letter.job,
                "reason": shorten(redact(letter.reason), MAX_REASON_CHARS),
            }
            for letter in letters.latest(MAX_DEAD_LETTERS)
        ]
        return {"count": letters.count(), "letters": latest}

    def queues(self) -> Json:
        """How many messages wait, are delayed and are held; empty for a broker that is no Redis."""
        if self.redis_queues is None:
            return {"queues": [], "held": None}
        queues = [
            {"name": name, "waiting": waiting, "delayed": delayed}
            for name, (waiting, delayed) in self.redis_queues.lengths().items()
        ]
        return {"queues": queues, "held": self.redis_queues.held()}
