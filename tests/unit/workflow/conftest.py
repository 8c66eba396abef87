import pytest
from celery import Celery
from fakeredis import FakeRedis

from shared.messages import DeployMessage
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.runs.conftest import deploy, publisher, reports, run, runs, to_task, worker  # noqa: F401 - a run
from tests.unit.workflow.harness import Backend, FakeServices, TaskRunner
from worker.runs.model import Step
from worker.workflow import control
from worker.workflow.task import StepTask

FIRST = Step("deploy.initialize", 10)


@pytest.fixture
def services(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> FakeServices:
    services = FakeServices(redis)
    monkeypatch.setattr("worker.workflow.task.services", lambda: services)
    monkeypatch.setattr(control, "services", lambda: services)
    # The tested task_runner is the contract's `deploy`, without the workflow behind it.
    monkeypatch.setattr("worker.workflow.rejected_jobs.RUN_TASKS", ("test.deploy",))
    return services


@pytest.fixture
def sender(services: FakeServices) -> RecordingPublisher:
    return services.sender


@pytest.fixture
def backend(services: FakeServices) -> Backend:
    return services.platform


@pytest.fixture
def task_runner(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> TaskRunner:
    app = Celery("test-control", broker="memory://", set_as_current=False)

    @app.task(base=StepTask, bind=True, name="test.deploy", shared=False)
    def _deploy(self: StepTask, /, *args: object, **kwargs: object) -> None:
        self.accept(DeployMessage, FIRST, args, kwargs)

    app.finalize()
    return TaskRunner(app, monkeypatch)
