"""The record of a run in Redis: accept, begin, note findings, end."""

import json
from dataclasses import dataclass, replace
from typing import Any

from redis import Redis

from shared.channels import RETENTION_SECONDS, job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker.platform import mask_secrets
from worker.runs import keys
from worker.runs.events import JobLog
from worker.runs.model import STOPPED, Acceptance, ClaimStatus, End, Lease, Run, RunMessage, Step
from worker.runs.scripts import run_scripts

_MESSAGES: dict[str, type[RunMessage]] = {"deploy": DeployMessage, "to_task": ToTaskMessage}


class UnknownRunError(LookupError):
    """There is no record of this run: it never was, or it expired a day after its end was reported."""


@dataclass(frozen=True)
class StepClaim:
    """The answer to `begin`: `run` is there only when the step may work."""

    status: ClaimStatus
    generation: int
    run: Run | None = None


class RunStore:
    """Reads and writes runs. Every change that two workers could race for is one script."""

    def __init__(self, redis: "Redis") -> None:
        self.redis = redis
        self._scripts = run_scripts(redis)
        self._log = JobLog(redis)

    def accept(self, message: RunMessage, queue: str) -> Acceptance:
        """Create the run of `message`, once a job; `queue` is where its steps will go."""
        stored = json.dumps(
            {
                "task": message.task,
                "kwargs": message.model_dump(mode="json", exclude_unset=True, by_alias=True),
            }
        )
        stored_end = json.dumps({"status": STOPPED.status, "result": STOPPED.result})
        job = message.job
        answer = self._scripts.run(
            "accept",
            [keys.run_key(job), job_key(job), keys.stop_key(job)],
            stored,
            message.action,
            message.plugin,
            queue,
            stored_end,
        )
        return Acceptance(answer[0])

    def exists(self, job: str) -> bool:
        """Whether there is a run of this job, live or ended."""
        return bool(self.redis.exists(keys.run_key(job)))

    def load(self, job: str) -> Run:
        """Read the run; raises `UnknownRunError`."""
        return self._run(job, again=False, generation=0)

    def claim_step(
        self,
        job: str,
        step: Step,
        part: str,
        token: str,
        lock_seconds: float,
        generation: int,
        redelivered: bool,
    ) -> StepClaim:
        """Take the step's lock and move the run on to it, if the run lives and is not further on."""
        name = f"{step.name}:{part}" if part else step.name
        lease = Lease(keys.lock_key(job, name), token)
        beginning, times, newest = self._scripts.run(
            "claim_step",
            [keys.run_key(job), job_key(job), lease.key, keys.polls_key(job)],
            name,
            step.position,
            token,
            int(lock_seconds * 1000),
            generation,
            int(redelivered),
            int(not step.has_parts),
            step.queue or "",
            keys.newest_field(name),
            keys.claimed_field(name),
        )
        run = None
        if beginning == ClaimStatus.CLAIMED:
            run = replace(self._run(job, again=int(times) > 1, generation=generation), lease=lease)
        return StepClaim(ClaimStatus(beginning), int(newest), run)

    def step_queue(self, job: str) -> str | None:
        """The queue that belongs to the step at which the run stands; None: the run's own."""
        return self.redis.hget(keys.run_key(job), "step_queue") or None

    def has_ended(self, job: str) -> bool:
        """Whether the run has ended, or is gone."""
        return bool(self.redis.hexists(keys.run_key(job), "end")) or not self.redis.exists(keys.run_key(job))

    def note(self, job: str, name: str, finding: Any) -> None:
        """Keep what a step found out, any JSON, for later steps and for its own second delivery."""
        # It may be what a neighbour answered, and that may be what it was sent.
        self.redis.hset(keys.run_key(job), f"finding:{name}", json.dumps(mask_secrets(finding)))

    def finish(self, job: str, end: End, step: Step | None = None) -> bool:
        """Write the end; false when the run had one already, is gone, or has passed `step`, which ends it."""
        end = End(end.status, mask_secrets(end.result))
        stored = json.dumps({"status": end.status, "result": end.result})
        return bool(
            self._scripts.run(
                "finish",
                [keys.run_key(job), job_key(job)],
                stored,
                end.status,
                end.error,
                "" if step is None else step.position,
            )
        )

    def remember_stop(self, job: str) -> None:
        """A stop that came before its job's message holds for a day."""
        self.redis.set(keys.stop_key(job), 1, ex=RETENTION_SECONDS)

    def mark_reported(self, job: str) -> None:
        """The backend has the end: nothing more will be sent, and the run's keys expire in a day."""
        expiring = self._all_keys(job)
        # The log's own keys may have to stay: a log that is followed for the job can outlive the run.
        self._log.close_if_complete(job, reported=True)
        # In one go: a sealed run without expiry would stay for ever.
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.run_key(job), "reported", 1)
            for key in expiring:
                pipe.expire(key, RETENTION_SECONDS)
            pipe.execute()

    def is_reported(self, job: str) -> bool:
        """Whether the backend has the end (or the run is gone)."""
        key = keys.run_key(job)
        return bool(self.redis.hexists(key, "reported")) or not self.redis.exists(key)

    def _all_keys(self, job: str) -> list[str]:
        workflow_keys = self.redis.smembers(f"{job_key(job)}:keys")
        own = [
            job_key(job),
            keys.run_key(job),
            keys.progress_key(job),
            keys.messages_key(job),
            keys.polls_key(job),
            f"{job_key(job)}:keys",
        ]
        return own + sorted(workflow_keys)

    def expire_with_run(self, job: str, *names: str) -> None:
        """Let further keys of a workflow expire with the run."""
        self.redis.sadd(f"{job_key(job)}:keys", *names)

    def _run(self, job: str, *, again: bool, generation: int) -> Run:
        stored = self.redis.hgetall(keys.run_key(job))
        if not stored:
            raise UnknownRunError(f"job {job} has no run here")
        message = json.loads(stored["message"])
        prefix = "finding:"
        return Run(
            job=job,
            message=_MESSAGES[message["task"]].model_validate(message["kwargs"]),
            queue=stored["queue"],
            position=int(stored["position"]),
            step=stored.get("step", ""),
            findings={
                k.removeprefix(prefix): json.loads(v) for k, v in stored.items() if k.startswith(prefix)
            },
            end=_end(stored.get("end")),
            is_retry=again,
            generation=generation,
        )


def _end(stored: str | None) -> End | None:
    if stored is None:
        return None
    end = json.loads(stored)
    return End(JobStatus(end["status"]), end["result"])
