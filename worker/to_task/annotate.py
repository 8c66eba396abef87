"""The step that annotates one chunk, what follows from its pass, and which chunks are in flight."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from shared.channels import RETENTION_SECONDS
from shared.messages import ToTaskMethod
from worker import tracing
from worker.blame import asks_for_later, retry_after_seconds
from worker.chunk_requests import chunk_requests
from worker.lua import redis_time
from worker.platform import ClientError, error_type
from worker.plugins import PluginHostBusyError
from worker.pre_processor import classify_serve_app
from worker.pre_processor.decision import application_failed, timed_out
from worker.pre_processor.serve_application import list_records
from worker.pre_processor.shared_requests import SharedRequests
from worker.pre_processor.waitlist import WaitlistName, pre_processor_of
from worker.runs.bulkhead import backoff, exponential
from worker.runs.ends import RunEnd
from worker.runs.model import Continue, ContinueInParts, Outcome, Reschedule, Suspend
from worker.runs.runs import Runs
from worker.services import Services
from worker.to_task.attempt import ChunkPass, FailedAttempt, TaskWork
from worker.to_task.clients import AnnotationRuntime, AsyncBackend
from worker.to_task.hooks import PluginHooks
from worker.to_task.ledger import Ledger, OpenTask, RedisLedger
from worker.to_task.methods import AnnotationMethod, FileMethod, InferenceMethod
from worker.to_task.pipeline import Pipeline
from worker.to_task.results import publish_progress
from worker.to_task.steps import ANNOTATE, FINALIZE, SPREAD, ToTaskRun
from worker.workflow.texts import Text, in_language


def is_unavailable(run: ToTaskRun, services: Services) -> bool:
    """Whether the run's pre-processor does not run now, asked when inferences fail.

    Without the question a run whose pre-processor went away would fail its tasks one by one, for hours.
    Raises the errors of the waiting list once it has been unavailable for longer than its timeout.
    """
    target = pre_processor_of(run)
    bucket, status = classify_serve_app(list_records(services.backend(run.message.tenant), target))
    store, since = services.runs.store, run.state.unavailable_since
    if bucket == "running":
        store.update_state(run, replace(run.state, unavailable_since=None))
        return False
    now = redis_time(services.redis)
    if since is None:
        store.update_state(run, replace(run.state, unavailable_since=now))
        text = in_language(run.message.language, Text.GONE, release=target.release)
        services.runs.events.message(run.job, text, step="annotate_task_data", level="warning")
    elif now - since > services.settings.worker_pre_processor_timeout_seconds:
        raise application_failed(str(status)) if bucket == "failed" else timed_out()
    return True


LATER_SECONDS = 1.0
"""Delay after a service asked for a later call without saying when."""
FIRST_TICKET_POLL_SECONDS, MAX_TICKET_POLL_SECONDS = 2.0, 15.0
MAX_PAUSE_SECONDS = 16.0


def select_tasks(tasks: Sequence[OpenTask]) -> list[OpenTask]:
    """The tasks of the next pass: those with a ticket, then new ones, or else those that failed before."""
    ticketed = [task for task in tasks if task.ticket is not None]
    fresh = [task for task in tasks if _is_fresh(task)]
    tried = [task for task in tasks if task.ticket is None and task.attempts > 0]
    return ticketed + (fresh or tried)


def finish_pass(
    attempt: ChunkPass, chunk: int, ledger: Ledger, probe: Callable[[], object]
) -> Reschedule | None:
    """When the next pass over the chunk begins; None when all of it is done.

    `probe` asks the backend for something simple. When it raises, the backend itself is unavailable or
    rejects the token: no attempt is counted then, and the caller handles the error. It is asked also when
    other tasks were answered in this pass, because the failures may be the first of an outage.
    """
    is_slow = bool(attempt.postponed) and not attempt.got_answer
    if attempt.retryable and not is_slow:
        probe()
        _count(list(attempt.retryable.values()), ledger)
    tasks = ledger.open_tasks(chunk)
    if not tasks:
        return None
    if attempt.postponed:
        return _later(list(attempt.postponed.values()))
    if attempt.got_answer and not attempt.saturated and any(_is_fresh(task) for task in tasks):
        return Reschedule(0.0)
    passes = [task.polls.passes if task.polls else 1 for task in tasks if task.ticket is not None]
    if passes:
        growing = exponential(
            min(passes) - 1, MAX_TICKET_POLL_SECONDS, first=FIRST_TICKET_POLL_SECONDS, factor=1.5
        )
        return Reschedule(growing)
    fewest = min((task.attempts for task in tasks if task.attempts), default=1)
    return Reschedule(backoff(fewest, MAX_PAUSE_SECONDS, first=1.0))


def _later(errors: Sequence[ClientError]) -> Reschedule:
    asked = [seconds for error in errors if (seconds := retry_after_seconds(error)) is not None]
    return Reschedule(max(LATER_SECONDS, *asked), is_asked_for=True) if asked else Reschedule(LATER_SECONDS)


def _is_fresh(task: OpenTask) -> bool:
    return task.ticket is None and task.attempts == 0


def _count(attempts: Sequence[FailedAttempt], ledger: Ledger) -> None:
    counts = ledger.increment_attempts([attempt.outcome.position for attempt in attempts])
    numbered = zip(attempts, counts, strict=False)
    spent = [attempt.outcome for attempt, count in numbered if count >= attempt.max_attempts]
    if spent:
        ledger.record(spent)


WAITING_CHUNKS = 2
"""Chunks of a run by file that wait in the queue for whichever process can begin one."""
MAX_CHUNKS_IN_FLIGHT = 1_000
"""Begun and waiting ones, whatever the number of processes."""
MAX_CHUNKS_ON_OTHER_BROKERS = 3
"""In flight where a worker also takes the messages that it cannot begin: as many as one process begins."""


def dispatch_chunks(run: ToTaskRun, services: Services) -> Outcome:
    """Publish the first chunks. When the sweep repeats this step, publish every open chunk again."""
    ledger = RedisLedger(services.redis, run.job)
    if ledger.is_complete():
        return Continue(FINALIZE)
    return ContinueInParts(SPREAD, list(_next_chunks(run, services.runs, ledger, resend=True).values()))


def publish_chunks(run: ToTaskRun, runs: Runs, ledger: RedisLedger, *, begun: int | None = None) -> None:
    """Publish as many chunks as are to wait for a process; `begun`: one of them does not wait any more."""
    for chunk, message in _next_chunks(run, runs, ledger, begun=begun).items():
        kwargs = {"job": run.job, **message.kwargs}
        runs.publisher.publish(ANNOTATE, ANNOTATE.queue or run.queue, kwargs, priority=run.priority)
        ledger.mark_published(chunk)


def _next_chunks(
    run: ToTaskRun, runs: Runs, ledger: RedisLedger, *, begun: int | None = None, resend: bool = False
) -> dict[int, Continue]:
    """The chunks that are to be published now, and their messages.

    A run by inference has one chunk in flight, because its concurrent requests are those of one chunk.
    """
    by_inference = run.message.params.method is ToTaskMethod.INFERENCE
    most = MAX_CHUNKS_IN_FLIGHT if runs.publisher.is_redis else MAX_CHUNKS_ON_OTHER_BROKERS
    waiting = WAITING_CHUNKS if runs.publisher.is_redis else most
    chunks = ledger.next_chunks(waiting, 1 if by_inference else most, begun=begun, resend=resend)
    # A message of an older generation would be dropped.
    generations = runs.generations.newest_of_each(run.job, [f"{ANNOTATE.name}:{chunk}" for chunk in chunks])
    return {
        chunk: Continue(ANNOTATE, {"chunk": chunk, "generation": generation})
        for chunk, generation in zip(chunks, generations, strict=True)
    }


MAX_PASS_SECONDS = 15.0
UNAVAILABLE_POLL_SECONDS = 5.0
"""Interval of polls for a pre-processor that became unavailable."""
SLOW_SPELL_SECONDS = 120.0
"""So long a service must have asked for no later call before the run's log says again that it is slow."""
MAX_STUCK_SECONDS = RETENTION_SECONDS
"""For so long tasks that a service puts off are tried while nothing else of the run is done."""
LOST_LEASE_POLL_SECONDS = 1.0
"""Delay after which a worker that lost its chunk's lease checks whether the new holder is alive."""
PLUGIN_BUSY_POLL_SECONDS = 5.0
"""Delay after which a chunk that found the plugin busy is retried."""


def annotate(run: ToTaskRun, chunk: int, services: Services, runtime: AnnotationRuntime) -> Outcome:
    """Annotate the open tasks of the chunk; rescheduled until all of them are done."""
    with runtime.ends.watching(run.job) as end:
        return _annotate(run, chunk, services, runtime, end)


def _annotate(
    run: ToTaskRun, chunk: int, services: Services, runtime: AnnotationRuntime, end: RunEnd
) -> Outcome:
    ledger = RedisLedger(services.redis, run.job, run.lease)
    tasks = ledger.open_tasks(chunk)
    if tasks:
        # Before the chunk's own work, so that another process can begin the next one meanwhile.
        publish_chunks(run, services.runs, ledger, begun=chunk)
        try:
            attempt = _run_pass(run, chunk, tasks, ledger, services, runtime, end)
        except PluginHostBusyError:
            return Reschedule(PLUGIN_BUSY_POLL_SECONDS)
        _trace_counts(attempt, tasks, ledger)
        if attempt.check_ended():
            return (
                Suspend() if services.runs.store.has_ended(run.job) else Reschedule(LOST_LEASE_POLL_SECONDS)
            )
        try:
            next_pass = _next_pass(run, chunk, services, ledger, attempt)
        except ClientError as error:
            if not asks_for_later(error):
                raise
            next_pass = _later([error])
        if next_pass is not None:
            return next_pass
    if ledger.complete_chunk(chunk):
        return Continue(FINALIZE)
    publish_chunks(run, services.runs, ledger)
    return Suspend()


def _run_pass(
    run: ToTaskRun,
    chunk: int,
    tasks: Sequence[OpenTask],
    ledger: RedisLedger,
    services: Services,
    runtime: AnnotationRuntime,
    end: RunEnd,
) -> ChunkPass:
    message = run.message
    backend = runtime.backends.of(message.tenant)
    budget = min(services.settings.worker_visibility_timeout_seconds / 3, MAX_PASS_SECONDS)
    with _annotation_method(run, services, backend, ledger) as method:
        pipeline = Pipeline(
            runtime.loop,
            backend,
            ledger,
            method,
            message.params.data_schema,
            services.settings.worker_plugin_max_failures_in_row,
            publish_progress=lambda: _publish_progress_throttled(run, services, ledger, runtime),
            run_end=end,
            chunk_requests=chunk_requests,
            skip_annotated=message.skip_annotated,
        )
        return pipeline.run(chunk, select_tasks(tasks), budget)


def _trace_counts(attempt: ChunkPass, tasks: Sequence[OpenTask], ledger: RedisLedger) -> None:
    tracing.set_attributes(
        {
            "synapse.tasks.open": len(tasks),
            "synapse.tasks.done": sum(done for done, _ in ledger.recorded),
            "synapse.tasks.failed": sum(failed for _, failed in ledger.recorded),
            "synapse.tasks.postponed": len(attempt.postponed),
            "synapse.tasks.deferred": len(attempt.pending_inferences),
            "synapse.tasks.retryable": len(attempt.retryable),
        }
    )


def _next_pass(
    run: ToTaskRun, chunk: int, services: Services, ledger: RedisLedger, attempt: ChunkPass
) -> Reschedule | None:
    message = run.message
    if attempt.postponed:
        _report_slowness(run, services, ledger, attempt)
        _fail_stuck_tasks(run, chunk, services, ledger, attempt)
    by_inference = message.params.method is ToTaskMethod.INFERENCE
    if by_inference and _may_be_unavailable(attempt):
        if is_unavailable(run, services):
            return Reschedule(UNAVAILABLE_POLL_SECONDS)
    elif run.state.unavailable_since is not None and attempt.got_answer:
        # It is back, or the next time that it is unavailable would count from now on.
        services.runs.store.update_state(run, replace(run.state, unavailable_since=None))
    project = message.params.project
    return finish_pass(attempt, chunk, ledger, lambda: services.backend(message.tenant).get_project(project))


def _report_slowness(run: ToTaskRun, services: Services, ledger: RedisLedger, attempt: ChunkPass) -> None:
    error = next(iter(attempt.postponed.values()))
    if ledger.begin_slow_spell(SLOW_SPELL_SECONDS + (retry_after_seconds(error) or 0.0)):
        text = in_language(run.message.language, Text.SLOW, error=error)
        services.runs.events.message(run.job, text, step="annotate_task_data", level="warning")


def _fail_stuck_tasks(
    run: ToTaskRun, chunk: int, services: Services, ledger: RedisLedger, attempt: ChunkPass
) -> None:
    """Fail the tasks that a service has put off for a day, in which no task of the run was done.

    It answers them alone with "later". The backend is asked for something simple before: while that is not
    answered either, the run waits for as long as it takes.
    """
    counts, now = ledger.counts(), redis_time(services.redis)
    done = counts.success + counts.failed
    if run.state.stuck is None or run.state.stuck[0] != done:
        services.runs.store.update_state(run, replace(run.state, stuck=(done, now)))
        return
    if now - run.state.stuck[1] < MAX_STUCK_SECONDS:
        return
    services.backend(run.message.tenant).get_project(run.message.params.project)
    stuck = [task for task in ledger.open_tasks(chunk) if task.position in attempt.postponed]
    errors = [attempt.postponed[task.position] for task in stuck]
    texts = [f"{error_type(error)} for a day: {error}" for error in errors]
    ledger.record([TaskWork(task).outcome(text) for task, text in zip(stuck, texts, strict=True)])


def _may_be_unavailable(attempt: ChunkPass) -> bool:
    """Whether inferences may have failed because the pre-processor is absent; a 429 says that it is there."""
    return bool(attempt.retryable) or any(error.status_code != 429 for error in attempt.postponed.values())


@contextmanager
def _annotation_method(
    run: ToTaskRun, services: Services, backend: AsyncBackend, ledger: RedisLedger
) -> Iterator[AnnotationMethod]:
    params = run.message.params
    release, request = services.action_of(run)
    hooks = PluginHooks(services.host, release, request)
    if params.method is ToTaskMethod.FILE:
        yield FileMethod(params, hooks)
        return
    target = pre_processor_of(run)
    application = WaitlistName.of(run.message.tenant or services.settings.synapse_tenant, target)
    wanted = target.concurrent_requests(params)
    requests = SharedRequests(services.redis, application)
    with requests.share(run.job, wanted, services.runs.locks) as slots:
        yield InferenceMethod(params, hooks, backend, ledger, target, slots)


def _publish_progress_throttled(
    run: ToTaskRun, services: Services, ledger: RedisLedger, runtime: AnnotationRuntime
) -> None:
    if runtime.progress_throttle.is_due(run.job):
        publish_progress(run, services.runs, ledger)
