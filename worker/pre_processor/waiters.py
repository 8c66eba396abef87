"""What a poll does to those who wait: send them on, fail them, let one of them dispatch."""

from dataclasses import dataclass

from shared.statuses import JobStatus
from worker.pre_processor.room import Room
from worker.pre_processor.steps import DISPATCH, READY
from worker.runs.heartbeat import run_member
from worker.runs.keys import run_key
from worker.runs.model import End, Step
from worker.runs.runs import Runs


@dataclass(frozen=True)
class Waiter:
    """A run that waits; `deadline` is Redis's time, `queue` where its messages go."""

    job: str
    deadline: float
    queue: str


def present(room: Room, runs: Runs) -> list[Waiter]:
    """Who waits, the next to be due first; runs that ended or went on meanwhile leave."""
    waiters = room.waiters()
    with runs.redis.pipeline(transaction=False) as pipe:
        for job, _ in waiters:
            pipe.hmget(run_key(job), ["queue", "end", "position"])
        found = pipe.execute()
    here = [
        Waiter(job, deadline, str(queue))
        for (job, deadline), (queue, end, position) in zip(waiters, found, strict=True)
        if queue is not None and end is None and int(position) <= DISPATCH.position
    ]
    staying = {waiter.job for waiter in here}
    for (job, _), (_, end, _) in zip(waiters, found, strict=True):
        if end is not None:
            runs.report_end(job)  # who wrote the end may have died before it was on its way
    room.leave(*(job for job, _ in waiters if job not in staying))
    return here


def let_out(waiters: list[Waiter], room: Room, runs: Runs) -> None:
    """The pre-processor runs. Each leaves after its message is out: who dies in between sends it again."""
    for waiter in waiters:
        runs.live.expect(run_member(waiter.job))
        _send(READY, waiter, {}, runs)
        room.leave(waiter.job)


def fail(waiters: list[Waiter], message: str, room: Room, runs: Runs) -> None:
    """Their runs end with `message`."""
    for waiter in waiters:
        runs.finish(waiter.job, End(JobStatus.FAILED, {"error": message}))
        room.leave(waiter.job)


def let_one_dispatch(waiters: list[Waiter], runs: Runs) -> None:
    """Who has the most time left joins again; joining gives the claim to one, however often this is sent."""
    waiter = waiters[-1]
    _send(DISPATCH, waiter, {"generation": runs.store.newest_poll(waiter.job, DISPATCH.name)}, runs)


def _send(step: Step, waiter: Waiter, kwargs: dict[str, int], runs: Runs) -> None:
    runs.sender.send(step, step.queue or waiter.queue, {"job": waiter.job, **kwargs})
