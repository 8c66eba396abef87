"""Fencing of polls: each poll of a step has a generation, and copies of older polls do nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from worker.runs.keys import newest_field, polls_key
from worker.runs.model import ClaimStatus, reading_record


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

    def newest(self, job: str, step_name: str) -> int:
        """The generation that a poll of this step must have to go on; raises `DamagedRunError`."""
        return self.newest_of_each(job, [step_name])[0]

    def newest_of_each(self, job: str, step_names: Sequence[str]) -> list[int]:
        """The same for each of these steps, or parts of a step."""
        if not step_names:
            return []
        found = self._redis.hmget(polls_key(job), [newest_field(name) for name in step_names])
        with reading_record(job):
            return [int(generation or 0) for generation in found]
