"""A workflow for tests, and what tests ask of its steps and of the backend."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shared.messages import DeployMessage
from tests.harness.in_process_worker import Delivery, InProcessWorker
from worker.runs.keys import RunField, run_key
from worker.runs.model import Outcome, Run, Step, Suspend, Workflow
from worker.runs.reports import reporter
from worker.runs.reports.reporter import JobsApi
from worker.runs.runs import Runs
from worker.runs.state import RunState, stored_field
from worker.testing import FakeBackend

VISIBILITY_TIMEOUT = 60.0


@dataclass(frozen=True)
class FoundState(RunState):
    """The state of a workflow of these tests."""

    application: dict[str, int] | None = None
    tries: int = stored_field("attempts", 0)


DEPLOY = Workflow(DeployMessage, FoundState)
FIRST = DEPLOY.step("deploy.first", 10)
SECOND = DEPLOY.step("deploy.second", 20)
CHUNK = DEPLOY.step("to_task.chunk", 20, queue="annotate", has_parts=True)


class StepCalls(list[Run[Any, Any]]):
    """A step's function that keeps the runs with which it was called."""

    def __init__(self, outcome: Outcome | Exception | None = None) -> None:
        self.outcome = outcome or Suspend()

    def __call__(self, run: Run[Any, Any]) -> Outcome:
        self.append(run)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def deliver(
    worker: InProcessWorker,
    step: Step,
    function: Callable[[Any], Outcome] = lambda run: Suspend(),
    *,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Delivery:
    """Deliver a message of `step`; without `kwargs` the first one, of generation 0."""
    return worker.run_step(step, function, kwargs=kwargs or {"job": "42"}, **options)


def report(job: str, runs: Runs, backend: JobsApi) -> float | None:
    """Report a run, whatever its tenant, to this backend."""
    return reporter.report(job, runs, lambda tenant: backend)


def advance(runs: Runs, job: str, step_name: str, generation: int) -> int:
    """A poll of the step is rescheduled; the generation of the next one."""
    run = replace(runs.store.load(job), generation=generation)
    return runs.store.reschedule_step(run, step_name, 0.0)


def end_by_an_older_worker(runs: Runs, job: str) -> None:
    """A worker of an older release wrote the end of a run, and died before it sent the report."""
    runs.redis.hset(run_key(job), RunField.ENDED, '{"status": "FAILED", "result": {"error": "x"}}')


def finals(backend: FakeBackend) -> list[dict[str, Any]]:
    """The reports of ends."""
    return [patch for patch in backend.patches if "result" in patch]
