"""What Celery and its monitors hear of a run that failed and of a message that was rejected."""

import logging
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.utils.imports import symbol_by_name
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.statuses import JobStatus
from tests.harness.in_process_worker import InProcessWorker, RecordingReports
from tests.unit.broker.task_messages import message
from tests.unit.runs.example_workflow import FIRST, StepCalls, deliver
from tests.unit.workflow.harness import MESSAGE, TaskRunner, dead_letters
from worker.platform import ServerError
from worker.runs.keys import lock_key
from worker.runs.model import STOPPED, Continue, Finish, Outcome, Run, RunFailedError
from worker.runs.runs import Runs
from worker.workflow.task import StepTask

FAILED = Finish(JobStatus.FAILED, {"error": "No tasks found to annotate"})


@pytest.mark.parametrize(
    ("outcome", "failure"),
    [
        (FAILED, "No tasks found to annotate"),
        (RunFailedError("no such project"), "no such project"),
        (ValueError("no such image"), "ValueError: no such image"),
    ],
)
def test_step_that_ends_its_run_failed_fails_itself(
    worker: InProcessWorker,
    run: Run,
    runs: Runs,
    reports: RecordingReports,
    outcome: Outcome | Exception,
    failure: str,
) -> None:
    delivery = deliver(worker, FIRST, StepCalls(outcome))

    # Then it fails with the run's error, when all is recorded: its message is acknowledged
    assert (delivery.failure, delivery.ended) == (failure, "acknowledged")
    end = runs.store.load("42").end
    assert end is not None
    assert (end.status, end.error) == (JobStatus.FAILED, failure)
    assert reports == [("42", 0.0)]
    assert not runs.redis.exists(lock_key("42", FIRST.name))


@pytest.mark.parametrize(
    "outcome", [Finish(JobStatus.SUCCEEDED, {}), Finish(JobStatus.STOPPED, {}), Continue(FIRST)]
)
def test_other_outcomes_are_no_failure(worker: InProcessWorker, run: Run, outcome: Outcome) -> None:
    assert deliver(worker, FIRST, StepCalls(outcome)).failure is None


def test_step_that_ends_nothing_is_no_failure(worker: InProcessWorker, run: Run, runs: Runs) -> None:
    # Given a run that is stopped while a step fails
    def stopped_meanwhile(_: Run) -> Outcome:
        runs.finish("42", STOPPED)
        return FAILED

    assert deliver(worker, FIRST, stopped_meanwhile).failure is None


def test_failure_whose_worker_died_is_shown_by_the_next_one(
    worker: InProcessWorker, run: Run, runs: Runs
) -> None:
    # Given a step that has ended its run FAILED, whose worker dies before it has acknowledged the message
    deliver(worker, FIRST, StepCalls(FAILED))

    # When the message comes again, then it fails the same, and another message of the run does not
    assert deliver(worker, FIRST, redelivered=True).failure == "No tasks found to annotate"
    assert deliver(worker, FIRST).failure is None


def test_step_that_only_redis_fails_is_retried(
    worker: InProcessWorker, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that goes away before the end is written
    def lost(*_: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(runs.store, "finish_all", lost)

    # Then nothing has failed
    delivery = deliver(worker, FIRST, StepCalls(FAILED))
    assert (delivery.failure, delivery.ended) == (None, "retried")


def test_rejected_message_fails_its_entry_task(task_runner: TaskRunner, redis: FakeRedis) -> None:
    delivery = task_runner.deliver("test.deploy", **{**MESSAGE, "plugin": "nobody@1.0.0"})

    assert delivery.failure == "there is no release nobody@1.0.0"
    assert [letter["reason"] for letter in dead_letters(redis)] == [delivery.failure]


def failing_task(app: Celery, runs: Runs, error: Exception) -> Any:
    class FailingTask(StepTask):
        abstract = True

        @property
        def runs(self) -> Runs:
            return runs

    def fail(self: StepTask, job: str, **_: Any) -> None:
        self.run_step(FIRST, job, StepCalls(error))

    return app.task(base=FailingTask, bind=True, name=FIRST.name, shared=False)(fail)


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_failure_is_an_event_and_one_line_in_the_log(
    run: Run, runs: Runs, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    # Given a step that Celery's own tracer calls, while a monitor listens
    app = Celery("failing", broker="memory://", set_as_current=False)
    app.conf.update(task_acks_late=True, task_ignore_result=True)
    task = failing_task(app, runs, RunFailedError("Serve deploy denied: token=abcdefgh12345678"))
    app.finalize()
    received = message([[], {"job": "42", "secret": "s3cr3t"}, {}], task=FIRST.name, id="m1")
    events, acknowledge = Mock(groups=["task"]), Mock()
    request_class = symbol_by_name(task.Request)
    request = request_class(received, app=app, task=task, eventer=events, on_ack=acknowledge)
    caplog.set_level(level)

    # When it ends its run FAILED
    arguments = request.request_dict
    result, info, runtime, _ = build_tracer(task.name, task, app=app)("m1", [], request.kwargs, arguments)
    request.on_success((1 if info else 0, result, runtime))

    # Then monitors hear of a failure with the run's cleaned error, and of the job alone
    [sent] = [call for call in events.send.call_args_list if call.args[0] == "task-failed"]
    assert sent.kwargs["exception"] == "RunFailedError('Serve deploy denied: token=***')"
    assert request.kwargsrepr == "{'job': '42'}"
    acknowledge.assert_called_once()
    # And Celery's line has no traceback
    lines = [record for record in caplog.records if record.name == "celery.app.trace"]
    assert [record.exc_info for record in lines] == ([None] if level == logging.INFO else [])


def test_retried_step_is_no_failure(worker: InProcessWorker, run: Run) -> None:
    delivery = deliver(worker, FIRST, StepCalls(ServerError("500")))
    assert (delivery.failure, delivery.ended) == (None, "retried")
