"""Detection, joining the waiting list, and the one request for the deployment."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.pre_processor.waitlist_harness import FakeServices, WaitlistHarness
from worker.platform import (
    ClientTimeoutError,
    MalformedResponseError,
    ServerError,
)
from worker.pre_processor import dispatch_body, dispatch_params
from worker.pre_processor.dispatch import detect, dispatch, dispatched_job
from worker.pre_processor.serve_application import PreProcessor
from worker.pre_processor.waitlist import (
    AWAIT_READY,
    DETECT,
    DISPATCH,
    FETCH_TASKS,
)
from worker.runs.model import Continue, Finish, Reschedule, Run, Suspend
from worker.testing import FakeBackend
from worker.to_task import steps as to_task


def test_a_running_pre_processor_is_not_waited_for(harness: WaitlistHarness, backend: FakeBackend) -> None:
    backend.add_application()
    assert harness.detect("1") == Continue(FETCH_TASKS)
    expected = PreProcessor("digits", "1.0.0", backend.release["config"], 1)
    assert harness.run("1").state.pre_processor == expected


def test_one_that_does_not_run_leads_to_the_waiting_list(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    assert harness.detect("1") == Continue(DISPATCH)
    backend.faults.fail("list_serve_applications", MalformedResponseError())
    assert harness.detect("2") == Continue(DISPATCH)


def test_another_release_that_runs_does_not_count(harness: WaitlistHarness, backend: FakeBackend) -> None:
    backend.add_application(data={"version": "2.0.0"})
    assert harness.detect("1") == Continue(DISPATCH)


@pytest.mark.parametrize(
    "release", [{}, {"version": "1"}, {"version": "1", "config": []}, {"config": {"code": "x"}}]
)
def test_a_release_that_cannot_be_deployed_ends_the_run(
    harness: WaitlistHarness, backend: FakeBackend, release: object
) -> None:
    backend.release = release
    harness.accept("1")
    assert isinstance(harness.step(DETECT, "1", detect), Finish)


def test_a_hundred_at_once_dispatch_once(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    jobs = [str(number) for number in range(100)]
    for job in jobs:
        harness.detect(job)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(harness.dispatch, jobs))
    assert len(backend.dispatches) == 1
    assert len(sender.of(AWAIT_READY.name)) == 1
    assert sorted(harness.waiting()) == sorted(jobs)
    backend.add_application()
    assert harness.poll() is None
    assert sorted(harness.resumed()) == sorted(jobs)


def test_one_that_started_since_detection_is_not_dispatched(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    harness.detect("1")
    backend.add_application()
    assert harness.dispatch("1") == Suspend()
    assert backend.dispatches == []
    assert harness.poll() is None
    assert harness.resumed() == ["1"]


def test_nothing_is_dispatched_before_the_records_are_read(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    harness.detect("1")
    backend.faults.fail("list_serve_applications", ServerError())
    assert isinstance(harness.dispatch("1"), Reschedule)
    assert backend.dispatches == []
    backend.faults.recover("list_serve_applications")
    assert harness.dispatch("1") == Suspend()
    assert len(backend.dispatches) == 1


def test_a_dispatch_that_fails_late_does_not_end_a_resumed_run(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    # Given a dispatch that did its work, while the backend keeps its answer back until the client gives up
    harness.detect("1")

    def slow(count: int) -> None:
        backend.add_application()
        harness.poll()
        assert harness.resumed() == ["1"]
        harness.step(to_task.FETCH_TASKS, "1", lambda run, services: Suspend())
        raise ClientTimeoutError

    backend.dispatch_answer = slow

    # When the dispatching step ends with the error
    harness.dispatch("1")

    # Then the run goes on, which collects its tasks by now
    assert harness.error("1") is None


def test_the_cause_of_a_failed_dispatch_is_attached(harness: WaitlistHarness, backend: FakeBackend) -> None:
    harness.detect("1")
    backend.faults.fail("run_plugin", ServerError("500: http://backend/x?token=abcdefgh"))
    caught: list[RuntimeError] = []

    def function(run: Run, services: FakeServices) -> Suspend:
        with pytest.raises(RuntimeError) as failure:
            dispatch(run, services)
        caught.append(failure.value)
        return Suspend()

    harness.step(DISPATCH, "1", function)
    assert isinstance(caught[0].__cause__, ServerError)
    assert caught[0].__cause__.status_code == 500
    assert "abcdefgh" not in str(caught[0].__cause__)


def test_an_answer_without_a_job_is_a_failed_dispatch(harness: WaitlistHarness, backend: FakeBackend) -> None:
    harness.detect("1")
    backend.dispatch_answer = lambda count: {"detail": "ok"}
    harness.dispatch("1")
    assert harness.error("1") == "Pre-processor deployment dispatch failed (MalformedResponse)"


def test_a_dispatcher_that_died_before_it_sent_sends_later(
    harness: WaitlistHarness, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.detect("1")
    harness.waitlist.join("1", 60)
    harness.step(DISPATCH, "1", lambda run, services: Suspend())
    harness.dispatch("1")
    assert len(backend.dispatches) == 1


def test_a_dispatcher_that_died_after_it_sent_sends_nothing(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    harness.detect("1")
    joined = harness.waitlist.join("1", 60)
    assert joined.claim is not None
    harness.waitlist.mark_sent(joined.claim, {})
    harness.step(DISPATCH, "1", lambda run, services: Suspend())
    assert harness.dispatch("1") == Suspend()
    assert backend.dispatches == []
    backend.add_application()
    assert harness.poll() is None
    assert harness.resumed() == ["1"]


def config(resources: Any) -> dict[str, Any]:
    return {"actions": {"inference": {"required_resources": resources}}}


@pytest.mark.parametrize(
    ("declared", "params"),
    [
        ({}, {"num_cpus": 1, "num_gpus": 0.1}),
        ({"required_cpu_count": 2, "num_cpus": 3}, {"num_cpus": 2, "num_gpus": 0.1}),
        ({"num_cpus": 3}, {"num_cpus": 3, "num_gpus": 0.1}),
        ({"required_gpu_count": 0, "num_gpus": 1}, {"num_cpus": 1, "num_gpus": 0}),
        ({"num_gpus": 0.5}, {"num_cpus": 1, "num_gpus": 0.5}),
        ({"num_replicas": 2}, {"num_cpus": 1, "num_gpus": 0.1, "num_replicas": 2}),
        ({"memory": 4294967296, "memory_bytes": 1}, {"num_cpus": 1, "num_gpus": 0.1, "memory": 4294967296}),
        ({"memory_bytes": 1024.0}, {"num_cpus": 1, "num_gpus": 0.1, "memory": 1024}),
        (
            {"num_replicas": None, "memory": None, "required_cpu_count": None},
            {"num_cpus": 1, "num_gpus": 0.1},
        ),
        ({"anything": "else"}, {"num_cpus": 1, "num_gpus": 0.1}),
    ],
)
def test_the_four_keys_of_the_table_and_nothing_else(
    declared: dict[str, Any], params: dict[str, Any]
) -> None:
    assert dispatch_params(config(declared)) == params


@pytest.mark.parametrize("odd", [{}, {"actions": None}, {"actions": {"inference": None}}, config(None)])
def test_a_release_that_declares_nothing_gets_the_defaults(odd: dict[str, Any]) -> None:
    assert dispatch_params(odd) == {"num_cpus": 1, "num_gpus": 0.1}


@pytest.mark.parametrize(
    "declared",
    [
        {"num_cpus": "2"},
        {"num_cpus": -1},
        {"num_cpus": True},
        {"num_gpus": float("nan")},
        {"num_gpus": float("inf")},
        {"num_replicas": 0},
        {"num_replicas": 1.5},
        {"num_replicas": "auto"},
        {"memory": -1},
        {"memory": 10**400},
        {"num_cpus": 10**400},
        {"memory_bytes": 0.5},
        {"memory": []},
        "all of it",
    ],
)
def test_values_that_no_cluster_could_give_are_rejected(declared: Any) -> None:
    with pytest.raises(RuntimeError, match="required_resources"):
        dispatch_params(config(declared))


def test_the_body_names_agent_action_and_version() -> None:
    target = PreProcessor("digits", "1.0.0", config({"num_cpus": 2}), 4)
    assert dispatch_body(target) == {
        "agent": 4,
        "action": "deployment",
        "params": {"num_cpus": 2, "num_gpus": 0.1},
        "version": "1.0.0",
    }
    assert dispatch_body(target, "ko")["language"] == "ko"


@pytest.mark.parametrize("answer", [{"id": 5}, {"job_id": 5}, {"id": None, "job_id": "5"}, {"id": "5"}])
def test_the_job_of_a_dispatch(answer: dict[str, Any]) -> None:
    assert dispatched_job(answer) == "5"


@pytest.mark.parametrize("answer", [None, [], {}, {"id": None}, {"id": True}, {"id": {}}, {"id": "a/b"}, 5])
def test_an_answer_without_a_job_is_malformed(answer: Any) -> None:
    with pytest.raises(MalformedResponseError):
        dispatched_job(answer)
