"""Workers that die during a message: they are counted, and after five the message is given up."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog
from redis import RedisError

from shared.channels import RETENTION_SECONDS
from shared.statuses import JobStatus
from worker.runs.heartbeat import run_member
from worker.runs.keys import entry_deaths_key
from worker.runs.model import Finish
from worker.workflow.delivery import SEPARATED_HEADER, DeliveredTask

log = structlog.get_logger(__name__)

MAX_DEATHS = 5
"""Workers that may die one after the other during a step that gets no further."""
MIN_DEATHS_TO_SEPARATE = 2
"""From so many on, the step is delayed at random after each."""
DEATHS_ADVICE = "see why they ended, such as the memory limit of a worker or native code of the plugin"


class DeathCountingTask(DeliveredTask):
    """The base class of `StepTask`. A step's claim counts deaths, and this class those of entry tasks."""

    abstract = True

    def _separated(self) -> object:
        return (self.request.headers or {}).get(SEPARATED_HEADER)

    def end_after_deaths(self, name: str, job: str, died: int) -> Finish | None:
        """The end of a run whose step killed worker after worker; None when the step is to be tried."""
        if died >= MAX_DEATHS:
            log.error("step not tried again", deaths=died)
            return Finish(JobStatus.FAILED, {"error": f"{died} workers died during {name}; {DEATHS_ADVICE}"})
        if died >= MIN_DEATHS_TO_SEPARATE and self._separated() != died:
            # The steps that were in a dead worker are delivered together. Apart, only the reason dies again.
            log.warning("step of dead workers delayed", deaths=died)
            countdown = random.uniform(0.0, self.runs.timing.max_countdown)
            self.runs.heartbeats.schedule(run_member(job), countdown)
            self.retry_later(countdown, redelivered=True, separated=died)
        return None

    @contextmanager
    def counting_deaths(self) -> Iterator[int]:
        """How many workers died with this message of an entry task; a death in the block counts, too.

        Only what is delivered again costs a call of Redis. That the first delivery has died is taken for
        granted then.
        """
        if not self.is_redelivered() and self._separated() is None:
            yield 0
            return
        key, token, died = entry_deaths_key(str(self.request.id)), self.runs.locks.new_token(), 0
        # Without Redis the message is retried anyway.
        with suppress(RedisError), self.runs.redis.pipeline(transaction=True) as pipe:
            pipe.scard(key)
            pipe.sadd(key, token)
            pipe.expire(key, RETENTION_SECONDS)
            died = 1 + int(pipe.execute()[0])
        try:
            if MIN_DEATHS_TO_SEPARATE <= died < MAX_DEATHS and self._separated() != died:
                log.warning("message of dead workers delayed", deaths=died)
                self.retry_later(random.uniform(0.0, self.runs.timing.max_countdown), separated=died)
            yield died
        finally:
            with suppress(RedisError):
                self.runs.redis.srem(key, token)
