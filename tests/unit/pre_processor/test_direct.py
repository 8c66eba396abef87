"""The blocking way, as an author tries it."""

from typing import Any

import pytest

from tests.unit.pre_processor.room_helpers import FakeBackend
from worker.platform import ClientConnectionError, MalformedResponseError, NotFoundError, ServerError
from worker.pre_processor.direct import PrepareStep, ensure_running
from worker.pre_processor.serve_application import PreProcessor
from worker.runs.model import RunFailedError


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
def api() -> FakeBackend:
    return FakeBackend()


def run(api: FakeBackend) -> PreProcessor:
    return ensure_running(api, pre_processor=7, agent=1)


def test_a_pre_processor_that_the_backend_does_not_know_is_named(api: FakeBackend) -> None:
    api.broken["get_plugin_release"] = NotFoundError("404", 404)

    with pytest.raises(RunFailedError, match=r"^Pre-processor 7 does not exist$"):
        run(api)


def test_what_runs_is_not_dispatched(api: FakeBackend, watch: Watch) -> None:
    api.runs_now()
    assert run(api).to_json() == {
        "code": "digits",
        "version": "1.0.0",
        "config": api.release["config"],
        "agent": 1,
    }
    assert api.dispatched == []


def test_what_does_not_run_is_dispatched_once_and_waited_for(api: FakeBackend, watch: Watch) -> None:
    watch.then = lambda: api.runs_now() if len(watch.slept) == 3 else None
    run(api)
    assert len(api.dispatched) == 1
    assert watch.slept == [10.0, 10.0, 10.0]


@pytest.mark.parametrize("error", [NotFoundError(), ServerError(), ClientConnectionError()])
def test_a_refused_dispatch_has_its_cause(api: FakeBackend, watch: Watch, error: Exception) -> None:
    api.broken["run_plugin"] = error
    with pytest.raises(RuntimeError) as failure:
        run(api)
    assert str(failure.value) == f"Pre-processor deployment dispatch failed ({type(error).__name__})"
    assert type(failure.value.__cause__) is type(error)
    assert len(api.dispatched) == 1


def test_a_failed_application_ends_the_wait(api: FakeBackend, watch: Watch) -> None:
    api.records = [{"id": 1, "status": "DEPLOY_FAILED", "job": 5}]
    watch.then = lambda: api.records.append({"id": 2, "status": "UNHEALTHY", "job": 101})
    with pytest.raises(
        RuntimeError, match=r"^Pre-processor deployment failed: serve application .*UNHEALTHY"
    ):
        run(api)
    assert watch.slept == [10.0]


def test_a_failed_job_ends_the_wait(api: FakeBackend, watch: Watch) -> None:
    api.jobs["101"] = "STOPPED"
    with pytest.raises(RuntimeError) as failure:
        run(api)
    assert str(failure.value) == "Pre-processor deployment failed: job reached terminal state (STOPPED)"


def test_the_time_is_up_after_three_minutes(api: FakeBackend, watch: Watch) -> None:
    with pytest.raises(RuntimeError, match=r"^Pre-processor did not become ready within timeout$"):
        run(api)
    assert sum(watch.slept) == 180


def test_answers_that_are_errors_are_waited_out(api: FakeBackend, watch: Watch) -> None:
    def break_and_mend() -> None:
        api.broken["list_serve_applications"] = MalformedResponseError()
        if len(watch.slept) == 2:
            api.broken.clear()
            api.runs_now()

    watch.then = break_and_mend
    run(api)
    assert len(watch.slept) == 2, "it looked again after each error, and no more once it ran"


def test_the_steps_own_wait_takes_a_timeout(api: FakeBackend, watch: Watch) -> None:
    step = PrepareStep(api, pre_processor=7, agent=1, poll_seconds=3)
    with pytest.raises(RuntimeError, match="within timeout"):
        step._wait_for_pre_processor(timeout_seconds=7)
    assert watch.slept == [3, 3, 1]
