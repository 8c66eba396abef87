"""A whole run's Ray job is submitted once, followed to its end, and ended with the run."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.deploy.deploy_harness import DeployHarness
from worker.plugins import PluginCallError, PluginHostUnavailableError
from worker.plugins.output import PluginOutput
from worker.runs.keys import messages_key, open_logs_key
from worker.runs.model import Continue, Finish, Reschedule, RunFailedError
from worker.runs.reports.reporter import stop
from worker.testing import FakeJobs
from worker.whole_run.job_output import JobOutput
from worker.whole_run.ray_jobs import JobState
from worker.whole_run.run import (
    AWAIT_END,
    SUBMIT,
    WHOLE_RUN,
    await_end,
    ray_job_id,
    stop_after_end,
    submit,
)

Step = Callable[[], Any]


@pytest.fixture
def submits(harness: DeployHarness, jobs: FakeJobs) -> Step:
    return lambda: harness.step(SUBMIT, lambda run: submit(run, harness.services, jobs))


@pytest.fixture
def looks(harness: DeployHarness, jobs: FakeJobs) -> Step:
    return lambda: harness.step(AWAIT_END, lambda run: await_end(run, harness.services, jobs))


@pytest.fixture
def id(harness: DeployHarness) -> str:
    return ray_job_id("42", harness.services)


def test_the_job_is_submitted_and_its_log_relayed(
    harness: DeployHarness, jobs: FakeJobs, submits: Step, id: str
) -> None:
    assert submits() == Continue(AWAIT_END)

    assert jobs.submitted == [id]
    assert harness.services.redis.zrange(open_logs_key(), 0, -1) == [f"42/{id}"]
    assert f"The action runs whole for its own execute(), as Ray job {id}." in harness.messages()


@pytest.mark.parametrize("call", ["submit", "state of the run", "relayed log"])
def test_a_submission_after_a_kill_takes_the_job_over(
    harness: DeployHarness, jobs: FakeJobs, submits: Step, monkeypatch: pytest.MonkeyPatch, id: str, call: str
) -> None:
    # Given a worker that was killed after it had done so much
    class Killed(BaseException): ...

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if call == "submit":
            jobs.faults.lose_answer("submit", Killed())
        elif call == "state of the run":
            patch.setattr(harness.runs.events, "message", die)
        else:
            patch.setattr("worker.whole_run.run.subscribe_log", die)
        with pytest.raises(Killed):
            submits()

    # When another one submits
    assert submits() == Continue(AWAIT_END)

    # Then there is one job
    assert jobs.submitted == [id]


@pytest.mark.parametrize(
    ("job", "other"),
    [("42", {"synapse_host": "http://other"}), ("42", {"synapse_tenant": "acme"}), ("43", {})],
)
def test_other_runs_of_the_cluster_have_other_jobs(
    harness: DeployHarness, id: str, job: str, other: dict[str, str]
) -> None:
    harness.services.settings = harness.services.settings.model_copy(update=other)

    assert ray_job_id(job, harness.services) != id


def test_any_job_has_an_id_that_ray_takes(harness: DeployHarness) -> None:
    id = ray_job_id("a.b" * 33, harness.services)

    assert len(id) <= 100
    assert set(id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_job_that_ray_rejects_ends_the_run(harness: DeployHarness, jobs: FakeJobs, submits: Step) -> None:
    jobs.faults.fail("submit", PluginCallError("JobRejected", "no such plugin"))

    with pytest.raises(RunFailedError, match=r"^Plugin digits@1\.0\.0 cannot run: no such plugin$"):
        submits()


def test_without_a_cluster_the_run_says_what_to_set(harness: DeployHarness, submits: Step) -> None:
    harness.services.settings = harness.services.settings.model_copy(update={"ray_address": None})

    with pytest.raises(RunFailedError, match="set RAY_ADDRESS"):
        submits()


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_job_that_runs_is_polled_again(
    jobs: FakeJobs, submits: Step, looks: Step, id: str, clock: Clock, status: str
) -> None:
    submits()
    jobs.jobs[id] = JobState(status)
    first = looks()
    clock.forward(500)
    later = looks()

    assert isinstance(first, Reschedule)
    assert 0.5 <= first.countdown < 1
    assert later == Reschedule(5.0)


def test_the_result_is_the_runs(jobs: FakeJobs, submits: Step, looks: Step, id: str) -> None:
    submits()
    jobs.jobs[id] = JobState("SUCCEEDED")

    assert looks() == Finish(JobStatus.SUCCEEDED, {"did": "it"})


def test_what_the_action_said_reaches_the_run(
    harness: DeployHarness, jobs: FakeJobs, submits: Step, looks: Step, id: str
) -> None:
    submits()
    said = {"entries": [{"event": "message", "data": {"content": "hello"}}], "progress": {"own": 50}}
    jobs.jobs[id], jobs.left = (
        JobState("SUCCEEDED"),
        JobOutput({}, said=PluginOutput.model_validate(said)),
    )

    looks()

    sent = [json.loads(each) for each in harness.services.redis.lrange(messages_key("42"), 0, -1)]
    assert {"content": "hello"} in [each["data"] for each in sent]
    # And its line is not added to the log, which the job's own has it in
    history = harness.services.redis.xrange("synapse:jobs:{42}:logs:history")
    assert "hello" not in [fields.get("line") for _, fields in history]


@pytest.mark.parametrize(
    ("left", "message", "error"),
    [
        (JobOutput(error="ValueError: no"), "of Ray", "Plugin digits@1.0.0 failed: ValueError: no"),
        (JobOutput(), "no such package", "Plugin digits@1.0.0 failed: no such package"),
    ],
)
def test_a_failed_job_fails_the_run(
    jobs: FakeJobs, submits: Step, looks: Step, id: str, left: JobOutput, message: str, error: str
) -> None:
    submits()
    jobs.jobs[id], jobs.left = JobState("FAILED", message), left

    with pytest.raises(RunFailedError) as failure:
        looks()

    assert str(failure.value) == error


def test_a_job_without_a_result_fails_the_run(jobs: FakeJobs, submits: Step, looks: Step, id: str) -> None:
    submits()
    jobs.jobs[id], jobs.left = JobState("SUCCEEDED"), JobOutput(problem="its job has left no result")

    with pytest.raises(RunFailedError, match="ended without a result to take over: its job has left no"):
        looks()


def test_a_job_that_ray_stopped_stops_the_run(jobs: FakeJobs, submits: Step, looks: Step, id: str) -> None:
    submits()
    jobs.jobs[id] = JobState("STOPPED")

    assert looks() == Finish(JobStatus.STOPPED, {"error": "stopped"})


def test_a_job_that_does_not_begin_in_time_is_stopped(
    jobs: FakeJobs, submits: Step, looks: Step, id: str, clock: Clock
) -> None:
    submits()
    jobs.jobs[id] = JobState("PENDING", "waits for 8 CPUs")
    clock.forward(601)

    with pytest.raises(RunFailedError, match=r"has not begun within 600 s: waits for 8 CPUs"):
        looks()

    assert jobs.jobs[id].status == "STOPPED"


def test_a_job_that_the_cluster_forgets_fails_the_run(
    jobs: FakeJobs, submits: Step, looks: Step, id: str, clock: Clock
) -> None:
    # Given a job that Ray does not show for a moment
    submits()
    job = jobs.jobs.pop(id)
    assert looks() == Reschedule(1.0)
    jobs.jobs[id] = job
    clock.forward(40)
    assert isinstance(looks(), Reschedule)

    # When it is gone for longer, then the run has failed
    del jobs.jobs[id]
    assert looks() == Reschedule(1.0)
    clock.forward(31)
    with pytest.raises(RunFailedError, match="does not know job"):
        looks()


def test_a_stop_ends_the_job(harness: DeployHarness, jobs: FakeJobs, submits: Step, id: str) -> None:
    submits()
    stop("42", harness.runs)

    stop_after_end("42", harness.services, jobs)

    assert jobs.jobs[id].status == "STOPPED"


def test_a_stop_amid_the_submission_waits_for_the_job(
    harness: DeployHarness, jobs: FakeJobs, submits: Step, id: str, clock: Clock
) -> None:
    # Given a run that was stopped while Ray was asked to take its job
    jobs.faults.fail("submit", PluginHostUnavailableError("Ray hangs"))
    with pytest.raises(PluginHostUnavailableError):
        submits()
    stop("42", harness.runs)

    # Then its message is retried until Ray shows the job
    with pytest.raises(PluginHostUnavailableError, match="may still arrive"):
        stop_after_end("42", harness.services, jobs)
    jobs.jobs[id] = JobState("RUNNING")
    stop_after_end("42", harness.services, jobs)
    assert jobs.jobs[id].status == "STOPPED"
    # And not for ever
    del jobs.jobs[id]
    clock.forward(31)
    stop_after_end("42", harness.services, jobs)


def test_a_stop_is_heard_before_the_next_poll(harness: DeployHarness, submits: Step, looks: Step) -> None:
    # Given a run that waits for its next poll
    submits()
    looks()
    sent = harness.runs.publisher.of(AWAIT_END.name)

    # When it is stopped, then its step is delivered at once
    stop("42", harness.runs)

    [message] = harness.runs.publisher.of(AWAIT_END.name)[len(sent) :]
    assert (message.kwargs["job"], message.countdown) == ("42", 0.0)


def test_the_state_is_that_of_the_workflow_before(harness: DeployHarness) -> None:
    state = WHOLE_RUN.typed(harness.runs.store.load("42")).state

    assert state.whole_run == {"methods": ["execute"], "runner": "sdk"}
