"""Fencing of polls: each poll of a step has a generation, and copies of older polls do nothing."""

from dataclasses import dataclass

from redis import Redis

from worker.runs.keys import claimed_field, newest_field, polls_key, run_key
from worker.runs.model import ClaimStatus
from worker.runs.scripts import run_scripts


@dataclass(frozen=True)
class GenerationClaim:
    """Whether a poll may go on: `CLAIMED`, `SUPERSEDED` or `REPUBLISH`.

    `REPUBLISH`: its successor was announced and never published; it goes on as `generation`, the newest.
    """

    status: ClaimStatus
    generation: int


class Generations:
    """The generations of the polls of runs, by the name of the step, or of its part."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._scripts = run_scripts(redis)

    def newest(self, job: str, step_name: str) -> int:
        """The generation that a poll of this step must have to go on."""
        return int(self._redis.hget(polls_key(job), newest_field(step_name)) or 0)

    def claim(self, job: str, step_name: str, generation: int, redelivered: bool) -> GenerationClaim:
        """A poll of `generation` begins. Steps of runs are claimed by `RunStore.claim_step`, together with
        their lock."""
        fields = newest_field(step_name), claimed_field(step_name)
        status, newest = self._scripts.run(
            "claim_generation", [polls_key(job)], *fields, generation, int(redelivered)
        )
        return GenerationClaim(ClaimStatus(status), int(newest))

    def advance(self, job: str, step_name: str, generation: int) -> int:
        """The generation of the poll that follows `generation`, whose copies can no longer go on."""
        keys = [run_key(job), polls_key(job)]
        return int(self._scripts.run("advance_generation", keys, newest_field(step_name), generation))
