"""The step that works one chunk for a while, what follows from its pass, and which chunks are under way."""

from collections.abc import Callable, Sequence

from shared.messages import ToTaskMethod
from worker.plugins import PluginHostBusyError
from worker.pre_processor import classify_serve_app
from worker.pre_processor.dispatch import FINDING, application_failed, timed_out
from worker.pre_processor.serve_application import PreProcessor, records
from worker.runs.model import Continue, Outcome, Reschedule, Run, Suspend
from worker.runs.runs import Runs
from worker.services import Services
from worker.to_task.attempt import Attempt
from worker.to_task.clients import AsyncBackend, Crew
from worker.to_task.hooks import HostHooks
from worker.to_task.ledger import Ledger, Mark, OpenTask, RedisLedger
from worker.to_task.methods import FileRoute, InferenceRoute, Route
from worker.to_task.pipeline import Pipeline
from worker.to_task.results import tell
from worker.to_task.steps import ANNOTATE, FINALIZE, message_of

GONE = "pre_processor_gone"
"""Finding: Redis's time at which it was first found away, or None."""


def is_away(run: Run, services: Services) -> bool:
    """Whether to wait for it; raises the waiting room's errors when it has been away for too long."""
    target = PreProcessor.from_finding(run.findings[FINDING])
    bucket, status = classify_serve_app(records(services.backend(run.message.tenant), target))
    store, since = services.runs.store, run.findings.get(GONE)
    if bucket == "running":
        if since is not None:
            store.note(run.job, GONE, None)
        return False
    now = float(services.redis.time()[0])
    if since is None:
        store.note(run.job, GONE, now)
        text = f"Pre-processor {target.release} does not run any more: waiting for it."
        services.runs.events.message(run.job, text, step="annotate_task_data", level="warning")
    elif now - since > services.settings.worker_pre_processor_timeout_seconds:
        raise application_failed(str(status)) if bucket == "failed" else timed_out()
    return True


MOST_ATTEMPTS = 5
"""Attempts at a task that count; then it has failed."""
SECONDS_BETWEEN_POLLS = 2.0
LONGEST_PAUSE = 16.0


def choose(tasks: Sequence[OpenTask]) -> list[OpenTask]:
    """What the next pass works: tickets first, then what was not tried; what failed before comes last."""
    ticketed = [task for task in tasks if task.ticket is not None]
    fresh = [task for task in tasks if _is_fresh(task)]
    tried = [task for task in tasks if task.ticket is None and task.attempts > 0]
    return ticketed + (fresh or tried)


def settle(attempt: Attempt, chunk: int, ledger: Ledger, probe: Callable[[], object]) -> float | None:
    """Seconds until the next pass over the chunk; None when all of it is done.

    `probe` asks the backend for something simple. When it raises, the backend itself is away, or takes the
    token no more: that is no attempt at anything, and the error is the caller's to wait for or to end with.
    """
    if attempt.held:
        if attempt.denied or not attempt.answered:
            probe()
        _count(list(attempt.held.values()), ledger)
    tasks = ledger.open_tasks(chunk)
    if not tasks:
        return None
    if attempt.answered and not attempt.full and any(_is_fresh(task) for task in tasks):
        return 0.0
    if any(task.ticket is not None for task in tasks):
        return SECONDS_BETWEEN_POLLS
    fewest = min((task.attempts for task in tasks if task.attempts), default=1)
    return min(2.0**fewest, LONGEST_PAUSE)


def _is_fresh(task: OpenTask) -> bool:
    return task.ticket is None and task.attempts == 0


def _count(held: Sequence[Mark], ledger: Ledger) -> None:
    counts = ledger.count_attempts([mark.position for mark in held])
    spent = [mark for mark, count in zip(held, counts, strict=False) if count >= MOST_ATTEMPTS]
    if spent:
        ledger.record(spent)


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
        generation = runs.store.current_generation(run.job, f"{ANNOTATE.name}:{chunk}")
        kwargs = {"job": run.job, "chunk": chunk, "generation": generation}
        runs.publisher.publish(ANNOTATE, ANNOTATE.queue or run.queue, kwargs)
        ledger.sent(chunk)
    return Suspend()


LONGEST_PASS = 15.0
SECONDS_FOR_PRE_PROCESSOR = 5.0
"""Between two looks at a pre-processor that went away."""
SECONDS_FOR_ANOTHER = 1.0
"""Until who lost its chunk to another looks whether that one is alive."""
SECONDS_FOR_A_TURN = 5.0
"""Until a chunk that found the plugin at work for others asks again."""


def annotate(run: Run, chunk: int, services: Services, crew: Crew) -> Outcome:
    """Annotate what of the chunk is open. Its task is redelivered until all of it is done."""
    message = message_of(run)
    ledger = RedisLedger(services.redis, run.job, run.lease)
    tasks = ledger.open_tasks(chunk)
    if tasks:
        backend = crew.backends.of(message.tenant)
        pipeline = Pipeline(
            crew.loop,
            backend,
            ledger,
            _route(run, services, backend, ledger),
            message.params.data_schema,
            tell=lambda: _tell_now_and_then(run, services, ledger, crew),
        )
        budget = min(services.settings.worker_visibility_timeout_seconds / 3, LONGEST_PASS)
        try:
            attempt = pipeline.run(choose(tasks), budget)
        except PluginHostBusyError:
            return Reschedule(SECONDS_FOR_A_TURN)
        if attempt.look():
            return Suspend() if services.runs.store.has_ended(run.job) else Reschedule(SECONDS_FOR_ANOTHER)
        if attempt.held and message.params.method is ToTaskMethod.INFERENCE and is_away(run, services):
            return Reschedule(SECONDS_FOR_PRE_PROCESSOR)
        project = message.params.project
        pause = settle(attempt, chunk, ledger, lambda: services.backend(message.tenant).get_project(project))
        if pause is not None:
            return Reschedule(pause)
    ledger.chunk_done(chunk)
    return go_on(run, services.runs, ledger)


def _route(run: Run, services: Services, backend: AsyncBackend, ledger: RedisLedger) -> Route:
    params = message_of(run).params
    release, request = services.action_of(run)
    hooks = HostHooks(services.host, release, request)
    if params.method is ToTaskMethod.FILE:
        return FileRoute(params, hooks)
    target = PreProcessor.from_finding(run.findings["pre_processor"])
    return InferenceRoute(params, hooks, backend, ledger, target)


def _tell_now_and_then(run: Run, services: Services, ledger: RedisLedger, crew: Crew) -> None:
    if crew.pace.is_due(run.job):
        tell(run, services.runs, ledger)
