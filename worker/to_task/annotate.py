"""The step that works one chunk, for a while; what is not done then is done by a later delivery."""

from shared.messages import ToTaskMethod
from worker.plugins import PluginHostBusyError
from worker.runs.model import Outcome, Park, PollAgain, Run
from worker.services import Services
from worker.to_task.backends import AsyncBackend
from worker.to_task.crew import Crew
from worker.to_task.hooks import HostHooks
from worker.to_task.inference import PreProcessor
from worker.to_task.inference_route import InferenceRoute
from worker.to_task.message import message_of
from worker.to_task.news import tell
from worker.to_task.pipeline import Pipeline
from worker.to_task.presence import is_away
from worker.to_task.redis_ledger import RedisLedger
from worker.to_task.routes import FileRoute, Route
from worker.to_task.settle import choose, settle
from worker.to_task.window import go_on

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
            return PollAgain(SECONDS_FOR_A_TURN)
        if attempt.look():
            return Park() if services.runs.store.is_over(run.job) else PollAgain(SECONDS_FOR_ANOTHER)
        if attempt.held and message.params.method is ToTaskMethod.INFERENCE and is_away(run, services):
            return PollAgain(SECONDS_FOR_PRE_PROCESSOR)
        project = message.params.project
        pause = settle(attempt, chunk, ledger, lambda: services.backend(message.tenant).get_project(project))
        if pause is not None:
            return PollAgain(pause)
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
