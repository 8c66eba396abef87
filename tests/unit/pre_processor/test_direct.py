"""The blocking way, as an author tries it."""

from typing import Any

import pytest

from worker.platform import ClientConnectionError, MalformedResponseError, NotFoundError, ServerError
from worker.pre_processor.direct import PrepareStep, ensure_running
from worker.pre_processor.serve_application import PreProcessor
from worker.runs.model import RunFailedError
from worker.testing import FakeBackend


class Watch:
    """A clock whose `sleep` passes the time; `then` happens while sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.then: Any = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.then()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("worker.pre_processor.direct.time", watch)
    return watch


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def run(backend: FakeBackend) -> PreProcessor:
    return ensure_running(backend, pre_processor=7, agent=1)


def test_an_unknown_pre_processor_is_named(backend: FakeBackend) -> None:
    backend.faults.fail("get_plugin_release", NotFoundError("404", 404))

    with pytest.raises(RunFailedError, match=r"^Pre-processor 7 does not exist$"):
        run(backend)


def test_what_runs_is_not_dispatched(backend: FakeBackend, watch: Watch) -> None:
    backend.add_application()
    assert run(backend).to_json() == {
        "code": "digits",
        "version": "1.0.0",
        "config": backend.release["config"],
        "agent": 1,
    }
    assert backend.dispatches == []


def test_what_does_not_run_is_dispatched_once_and_waited_for(backend: FakeBackend, watch: Watch) -> None:
    watch.then = lambda: backend.add_application() if len(watch.slept) == 3 else None
    run(backend)
    assert len(backend.dispatches) == 1
    assert watch.slept == [10.0, 10.0, 10.0]


@pytest.mark.parametrize("error", [NotFoundError(), ServerError(), ClientConnectionError()])
def test_a_rejected_dispatch_has_its_cause(backend: FakeBackend, watch: Watch, error: Exception) -> None:
    backend.faults.fail("run_plugin", error)
    with pytest.raises(RuntimeError) as failure:
        run(backend)
    assert str(failure.value) == f"Pre-processor deployment dispatch failed ({type(error).__name__})"
    assert type(failure.value.__cause__) is type(error)
    assert len(backend.dispatches) == 1


def test_a_failed_application_ends_the_wait(backend: FakeBackend, watch: Watch) -> None:
    backend.serve_applications = [{"id": 1, "status": "DEPLOY_FAILED", "job": 5}]
    watch.then = lambda: backend.serve_applications.append({"id": 2, "status": "UNHEALTHY", "job": 101})
    with pytest.raises(
        RuntimeError, match=r"^Pre-processor deployment failed: serve application .*UNHEALTHY"
    ):
        run(backend)
    assert watch.slept == [10.0]


def test_a_failed_job_ends_the_wait(backend: FakeBackend, watch: Watch) -> None:
    backend.jobs["101"] = "STOPPED"
    with pytest.raises(RuntimeError) as failure:
        run(backend)
    assert str(failure.value) == "Pre-processor deployment failed: job reached terminal state (STOPPED)"


def test_the_wait_ends_after_three_minutes(backend: FakeBackend, watch: Watch) -> None:
    with pytest.raises(RuntimeError, match=r"^Pre-processor did not become ready within timeout$"):
        run(backend)
    assert sum(watch.slept) == 180


def test_answers_that_are_errors_are_polled_again(backend: FakeBackend, watch: Watch) -> None:
    def break_and_mend() -> None:
        backend.faults.fail("list_serve_applications", MalformedResponseError())
        if len(watch.slept) == 2:
            backend.faults.recover("list_serve_applications")
            backend.add_application()

    watch.then = break_and_mend
    run(backend)
    assert len(watch.slept) == 2, "it polled again after each error, and no more once it ran"


def test_the_steps_own_wait_takes_a_timeout(backend: FakeBackend, watch: Watch) -> None:
    step = PrepareStep(backend, pre_processor=7, agent=1, poll_seconds=3)
    with pytest.raises(RuntimeError, match="within timeout"):
        step._wait_for_pre_processor(timeout_seconds=7)
    assert watch.slept == [3, 3, 1]
