"""The chunks of a run that are under way: a window of them, so that a large run does not bury a small one."""

from shared.messages import ToTaskMethod
from worker.runs.model import Continue, Outcome, Park, Run
from worker.runs.runs import Runs
from worker.services import Services
from worker.to_task.message import message_of
from worker.to_task.redis_ledger import RedisLedger
from worker.to_task.steps import ANNOTATE, FINALIZE

CHUNKS_AT_ONCE = 4
"""Of a run by file. A run by inference has one: the requests that it sends at once are those of one chunk."""


def spread(run: Run, services: Services) -> Outcome:
    """Open the window; sent again by the sweep, send every open chunk again."""
    ledger = RedisLedger(services.redis, run.job)
    return go_on(run, services.runs, ledger, again=True)


def go_on(run: Run, runs: Runs, ledger: RedisLedger, *, again: bool = False) -> Outcome:
    """Finalize when all is done, whoever finds it; else send the chunks for which the window has room."""
    if ledger.all_done():
        return Continue(FINALIZE)
    by_inference = message_of(run).params.method is ToTaskMethod.INFERENCE
    for chunk in ledger.next_chunks(1 if by_inference else CHUNKS_AT_ONCE, again=again):
        # A copy of an older poll of the chunk would be dropped.
        generation = runs.store.newest_poll(run.job, f"{ANNOTATE.name}:{chunk}")
        kwargs = {"job": run.job, "chunk": chunk, "generation": generation}
        runs.sender.send(ANNOTATE, ANNOTATE.queue or run.queue, kwargs)
        ledger.sent(chunk)
    return Park()
