"""Submission and the wait for it."""

from dataclasses import replace

import pytest

from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.deploy.deploy_harness import APP, DEPLOYING, FAILED, PLAN, RUNNING, DeployHarness
from worker.deploy.cluster import ServeState
from worker.deploy.deployments import Ownership
from worker.deploy.gate import capacity_gate
from worker.deploy.plan import AWAIT_RUNNING, CAPACITY_GATE, REGISTER, SERVE_RUN, Submission
from worker.deploy.serve import (
    await_running,
    poll_countdown,
    serve_run,
)
from worker.deploy.undo import LATE_SUBMISSION_SECONDS, undo_after_stop
from worker.plugins import PluginCallError, PluginHostUnavailableError
from worker.runs.keys import run_key
from worker.runs.model import Continue, End, Outcome, Reschedule, Step, Suspend
from worker.runs.reports.reporter import stop

OTHER = ServeState(True, "running", "RUNNING", "", frozenset({"d0"}))


def submit(harness: DeployHarness, job: str = "42") -> Outcome:
    harness.update_state(job, plan=PLAN)
    return harness.step(SERVE_RUN, lambda run: serve_run(run, harness.services, harness.serve), job)


def look(harness: DeployHarness, job: str = "42") -> Outcome:
    return harness.step(AWAIT_RUNNING, lambda run: await_running(run, harness.services, harness.serve), job)


def clean_up(harness: DeployHarness, job: str = "42") -> None:
    undo_after_stop(job, harness.services, harness.serve)


def test_the_application_is_submitted_once_and_waited_for(harness: DeployHarness) -> None:
    harness.host.messages = ["replaced in place"]
    assert submit(harness) == Continue(AWAIT_RUNNING)
    assert harness.host.calls == ["submit"]
    assert "replaced in place" in harness.messages()
    again = look(harness)
    assert isinstance(again, Reschedule)
    assert again.countdown <= 1
    harness.serve.application = RUNNING
    assert look(harness) == Continue(REGISTER)


def test_the_identical_application_is_not_submitted_again(harness: DeployHarness) -> None:
    harness.serve.application = RUNNING
    assert submit(harness) == Continue(AWAIT_RUNNING)
    assert harness.host.calls == []
    assert look(harness) == Continue(REGISTER)


def test_a_forced_deployment_is_submitted_once(harness: DeployHarness) -> None:
    # Given an identical application, and a run that is forced
    harness.serve.application = RUNNING
    harness.accept("43", force=True)
    harness.step(CAPACITY_GATE, lambda run: capacity_gate(run, harness.services), job="43")

    def submit_forced() -> Outcome:
        return harness.step(SERVE_RUN, lambda run: serve_run(run, harness.services, harness.serve), job="43")

    # When its step is delivered, and again after Serve shows what was submitted
    assert submit_forced() == Continue(AWAIT_RUNNING)
    plan = harness.run("43").state.plan
    assert plan is not None
    assert plan.digest not in ("d1", "")
    harness.serve.application = replace(RUNNING, digests=frozenset({plan.digest}))
    assert submit_forced() == Continue(AWAIT_RUNNING)

    # Then it was submitted once
    assert harness.host.calls == ["plan", "submit"]


@pytest.fixture
def forced(harness: DeployHarness) -> ServeState:
    """What a forced run of job 43 has submitted, as it runs."""
    return replace(RUNNING, digests=frozenset({PLAN.forced_by("43").digest}))


def test_what_was_forced_is_not_submitted_again_by_others(harness: DeployHarness, forced: ServeState) -> None:
    # Given an application that a forced run has submitted, of which Redis knows nothing any more
    harness.serve.application = forced

    # When the same is deployed without force
    assert submit(harness) == Continue(AWAIT_RUNNING)

    # Then nothing is submitted, and the application counts as the run's own
    assert harness.host.calls == []
    assert look(harness) == Continue(REGISTER)


def test_another_run_that_is_forced_submits_again(harness: DeployHarness, forced: ServeState) -> None:
    harness.serve.application = forced
    harness.update_state("42", plan=PLAN.forced_by("42"))

    harness.step(SERVE_RUN, lambda run: serve_run(run, harness.services, harness.serve))

    assert harness.host.calls == ["submit"]


def test_an_older_worker_takes_what_was_forced_as_the_runs_own(
    harness: DeployHarness, forced: ServeState
) -> None:
    # Given a run that has found what a forced one has submitted
    harness.serve.application = forced
    submit(harness)

    # Then Redis says that both have the same content, by which a worker of an older release goes
    (shown,) = forced.digests
    assert Ownership(harness.services, APP).has_content_of(PLAN.digest, [shown])


def test_what_a_forced_run_has_replaced_is_put_back(
    harness: DeployHarness, forced: ServeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run that has found what a forced one has submitted in place of a running application
    harness.serve.application = replace(forced, bucket="pending")
    submit(harness)
    put_back: list[str] = []
    monkeypatch.setattr(harness.serve, "put_back", lambda _name, failed: put_back.append(failed) or True)

    # When that fails
    harness.serve.application = replace(forced, bucket="failed", status="DEPLOY_FAILED")
    with pytest.raises(RuntimeError, match="DEPLOY_FAILED"):
        look(harness)

    # Then it is put back by the digest under which it was kept
    assert put_back == [*forced.digests]


def test_another_version_is_updated_in_place(harness: DeployHarness) -> None:
    harness.serve.application = OTHER
    submit(harness)
    assert harness.host.calls == ["submit"]
    assert harness.serve.removed == []


@pytest.mark.parametrize("state", [DEPLOYING, RUNNING, FAILED])
def test_a_delivery_after_the_submission_does_not_submit_again(
    harness: DeployHarness, state: ServeState
) -> None:
    submit(harness)
    harness.serve.application = state
    assert submit(harness) == Continue(AWAIT_RUNNING)
    assert harness.host.calls == ["submit"]


def test_a_second_delivery_before_the_submission_submits(harness: DeployHarness) -> None:
    harness.host.faults.fail("submit", PluginHostUnavailableError("away"))
    with pytest.raises(PluginHostUnavailableError):
        submit(harness)
    harness.host.faults.recover("submit")
    submit(harness)
    assert harness.host.calls == ["submit", "submit"]


def test_a_submission_that_raises_leaves_nothing_behind(harness: DeployHarness) -> None:
    harness.host.faults.fail("submit", PluginCallError("ValueError", "bad"))
    with pytest.raises(RuntimeError, match="failed to submit: ValueError: bad"):
        submit(harness)
    assert harness.serve.removed == []


def test_a_deployment_that_never_ran_is_removed(harness: DeployHarness) -> None:
    submit(harness)
    harness.serve.application = FAILED
    with pytest.raises(RuntimeError) as failure:
        look(harness)
    expected = f"Serve application {APP} reached DEPLOY_FAILED: ValueError: no weights"
    assert str(failure.value) == expected
    assert harness.run().end.error == expected
    assert harness.serve.removed == [APP]


def test_an_application_that_was_there_before_stays(harness: DeployHarness) -> None:
    # Given an update of a running application
    harness.serve.application = OTHER
    submit(harness)

    # When the update fails
    harness.serve.application = FAILED
    with pytest.raises(RuntimeError, match="reached DEPLOY_FAILED"):
        look(harness)

    # Then the application runs again what it ran before, and its user reads that
    assert (harness.serve.removed, harness.serve.application) == ([], OTHER)
    assert f"{APP} runs again what it ran before." in harness.messages()


def test_an_update_that_is_stopped_is_undone(harness: DeployHarness) -> None:
    harness.serve.application = OTHER
    submit(harness)
    stop("42", harness.runs)
    clean_up(harness)
    assert (harness.serve.removed, harness.serve.application) == ([], OTHER)


def test_the_plan_has_the_route_in_force(harness: DeployHarness) -> None:
    # Given an application under a route of its own
    harness.serve.application = replace(OTHER, route_prefix="/before")

    # When it is updated by a plan with another route, and runs
    submit(harness)
    harness.serve.application = replace(RUNNING, route_prefix=harness.serve.application.route_prefix)
    assert look(harness) == Continue(REGISTER)

    # Then what is registered is the route that it has
    plan = harness.run().state.plan
    assert plan is not None
    assert (PLAN.route_prefix, plan.route_prefix) == ("/abc", "/before")


def test_a_failed_submission_leaves_the_application_before_it(harness: DeployHarness) -> None:
    harness.serve.application = replace(DEPLOYING, digests=frozenset({"d0"}))
    harness.host.faults.fail("submit", PluginCallError("ValueError", "bad"))
    with pytest.raises(RuntimeError):
        submit(harness)
    assert harness.serve.removed == []


def test_a_worker_that_died_after_removing_ends_the_run_alike(harness: DeployHarness) -> None:
    submit(harness)
    harness.serve.application = FAILED
    errors = []
    for _ in range(2):
        run = harness.run()
        with pytest.raises(RuntimeError) as failure:
            await_running(run, harness.services, harness.serve)
        errors.append(str(failure.value))
    assert errors[0] == errors[1]
    assert harness.serve.removed == [APP]


def test_serves_reason_is_reported_once_from_the_first_attempt(harness: DeployHarness) -> None:
    submit(harness)
    harness.serve.application = replace(DEPLOYING, reason="ValueError: no weights. Retrying 2 more time(s)")
    look(harness)
    look(harness)
    assert harness.messages().count("no weights") == 1
    harness.serve.application = replace(DEPLOYING, reason="ValueError: no weights. Retrying 1 more time(s)")
    look(harness)
    assert harness.messages().count("no weights") == 2


def test_the_wait_ends_at_its_timeout(harness: DeployHarness, clock: Clock) -> None:
    submit(harness)
    harness.serve.application = replace(DEPLOYING, reason="no node has 64 CPUs")
    clock.forward(599)
    again = look(harness)
    assert isinstance(again, Reschedule)
    assert again.countdown < 1.1
    clock.forward(2)
    with pytest.raises(RuntimeError) as failure:
        look(harness)
    assert str(failure.value) == f"Serve application {APP} did not run within 600 s: no node has 64 CPUs"
    assert harness.serve.removed == [APP]


def test_an_unavailable_cluster_is_polled_until_the_timeout(harness: DeployHarness, clock: Clock) -> None:
    submit(harness)
    harness.serve.faults.fail("state", PluginHostUnavailableError("Ray is away"))
    assert isinstance(look(harness), Reschedule)
    clock.forward(601)
    with pytest.raises(RuntimeError, match="did not run within 600 s: Ray is away"):
        look(harness)


@pytest.mark.parametrize(
    ("state", "words"), [(ServeState(), "was removed"), (OTHER, "was replaced by another deployment")]
)
def test_an_application_that_is_no_longer_ours_ends_the_run(
    harness: DeployHarness, clock: Clock, state: ServeState, words: str
) -> None:
    submit(harness)
    harness.serve.application = state
    assert isinstance(look(harness), Reschedule)
    clock.forward(11)
    with pytest.raises(RuntimeError, match=words):
        look(harness)
    assert harness.serve.removed == []


def replaced_meanwhile(harness: DeployHarness) -> ServeState:
    """A second run deploys the application of the first with other options; what Serve shows then."""
    submit(harness)
    harness.accept("43")
    other_options = replace(PLAN, digest="d2")
    harness.host.plan = other_options.to_json()
    harness.update_state("43", plan=other_options)
    harness.serve.application = DEPLOYING
    harness.step(SERVE_RUN, lambda run: serve_run(run, harness.services, harness.serve), "43")
    return replace(RUNNING, digests=frozenset({"d2"}))


def test_a_run_joins_what_replaced_it_with_the_same_content(harness: DeployHarness, clock: Clock) -> None:
    harness.serve.application = replaced_meanwhile(harness)
    assert look(harness) == Continue(REGISTER)


def test_a_run_fails_when_other_content_replaced_it(harness: DeployHarness, clock: Clock) -> None:
    submit(harness)
    harness.services.checksum = "c2"
    harness.accept("43")
    other_options = replace(PLAN, digest="d2")
    harness.host.plan = other_options.to_json()
    harness.update_state("43", plan=other_options)
    harness.serve.application = DEPLOYING
    harness.step(SERVE_RUN, lambda run: serve_run(run, harness.services, harness.serve), "43")
    harness.serve.application = replace(RUNNING, digests=frozenset({"d2"}))
    look(harness)
    clock.forward(11)
    with pytest.raises(RuntimeError, match="was replaced by another deployment"):
        look(harness)


def test_a_submission_waits_for_a_removal_of_the_same(harness: DeployHarness) -> None:
    harness.update_state(plan=PLAN)
    with Ownership(harness.services, APP).locked() as is_locked:
        assert is_locked
        assert submit(harness) == Reschedule(1.0)
    assert harness.host.calls == []
    assert submit(harness) == Continue(AWAIT_RUNNING)


def test_a_removal_waits_for_a_submission_of_the_same(harness: DeployHarness) -> None:
    # Given an application that failed, and one that is stopped, while another run submits it
    submit(harness)
    harness.serve.application = FAILED
    with Ownership(harness.services, APP).locked():
        # Then the failure waits, and so does the clean-up after a stop
        assert look(harness) == Reschedule(1.0)
        stop("42", harness.runs)
        with pytest.raises(PluginHostUnavailableError, match="same application"):
            clean_up(harness)
    assert harness.serve.removed == []


def test_an_application_gone_for_a_moment_is_waited_for(harness: DeployHarness, clock: Clock) -> None:
    submit(harness)
    harness.serve.application = ServeState()
    look(harness)
    harness.serve.application = DEPLOYING
    look(harness)
    clock.forward(60)
    harness.serve.application = ServeState()
    assert isinstance(look(harness), Reschedule)


def test_a_serve_that_starts_anew_ends_no_deployment(harness: DeployHarness, clock: Clock) -> None:
    # Given a submitted application, and a Serve that starts anew for a minute
    submit(harness)
    harness.serve.application = ServeState(is_serve_up=False)
    assert isinstance(look(harness), Reschedule)
    clock.forward(60)
    assert isinstance(look(harness), Reschedule)

    # When it shows the application again, then the run goes on
    harness.serve.application = RUNNING
    assert look(harness) == Continue(REGISTER)


def test_a_stopped_run_removes_its_half_started_application(harness: DeployHarness) -> None:
    submit(harness)
    stop("42", harness.runs)
    clean_up(harness)
    clean_up(harness)
    assert harness.serve.removed == [APP]


def stop_amid_submission(harness: DeployHarness, before: ServeState | None = None) -> None:
    """The run is stopped while the plugin host submits, so that the call is abandoned."""
    harness.serve.application = before or ServeState()
    harness.update_state(plan=PLAN, submission=Submission(existed=before is not None, at=0.0))
    harness.step(SERVE_RUN, lambda run: Suspend())
    Ownership(harness.services, APP).acquire("42", existed=before is not None)
    stop("42", harness.runs)


def test_what_arrives_after_a_stop_amid_submission_is_removed(harness: DeployHarness) -> None:
    # Given a run that was stopped while its application was submitted, of which Serve shows nothing yet
    stop_amid_submission(harness)
    with pytest.raises(PluginHostUnavailableError, match="may still arrive"):
        clean_up(harness)

    # When it arrives, then it is removed
    harness.serve.application = DEPLOYING
    clean_up(harness)
    assert harness.serve.removed == [APP]


def test_a_submission_at_a_stop_is_waited_for_only_so_long(harness: DeployHarness, clock: Clock) -> None:
    stop_amid_submission(harness)
    clock.forward(LATE_SUBMISSION_SECONDS + 1)
    clean_up(harness)
    assert harness.serve.removed == []


def test_an_update_that_arrives_after_a_stop_is_undone(harness: DeployHarness) -> None:
    # Given a run that was stopped while it updated a running application, which Serve does not show yet
    stop_amid_submission(harness, OTHER)
    with pytest.raises(PluginHostUnavailableError, match="may still arrive"):
        clean_up(harness)

    # When the update arrives, then the application runs again what it ran before
    harness.serve.submit("d1", "/abc")
    clean_up(harness)
    assert (harness.serve.removed, harness.serve.application) == ([], OTHER)


@pytest.mark.parametrize("before", [OTHER, RUNNING])
def test_a_stopped_run_leaves_what_was_there_before(harness: DeployHarness, before: ServeState) -> None:
    harness.serve.application = before
    submit(harness)
    stop("42", harness.runs)
    clean_up(harness)
    assert harness.serve.removed == []


def test_a_stopped_run_leaves_what_runs(harness: DeployHarness) -> None:
    submit(harness)
    harness.serve.application = RUNNING
    stop("42", harness.runs)
    clean_up(harness)
    assert harness.serve.removed == []


def test_a_stop_before_the_submission_removes_nothing(harness: DeployHarness) -> None:
    stop("42", harness.runs)
    clean_up(harness)
    clean_up(harness, "unknown")
    assert harness.serve.removed == []


def test_a_stopped_run_leaves_what_a_later_run_waits_for(harness: DeployHarness) -> None:
    submit(harness)
    harness.accept("43")
    submit(harness, "43")
    assert harness.host.calls == ["submit"]
    stop("42", harness.runs)
    clean_up(harness)
    assert harness.serve.removed == []
    harness.serve.application = FAILED
    with pytest.raises(RuntimeError):
        look(harness, "43")
    assert harness.serve.removed == [APP]


def test_a_stopped_run_leaves_what_an_earlier_run_waits_for(harness: DeployHarness) -> None:
    # Given two runs that deploy the same, of which the second found it on its way
    submit(harness)
    harness.accept("43")
    submit(harness, "43")

    # When the second is stopped
    stop("43", harness.runs)
    clean_up(harness, "43")

    # Then the first still has what it waits for, and takes it away when it fails
    assert harness.serve.removed == []
    harness.serve.application = FAILED
    with pytest.raises(RuntimeError):
        look(harness)
    assert harness.serve.removed == [APP]


def test_of_two_runs_that_fail_at_once_one_removes_it(
    harness: DeployHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two runs that deploy the same, which does not start
    submit(harness)
    harness.accept("43")
    submit(harness, "43")
    harness.serve.application = FAILED

    # When the second gives up before the end of the first, which gives up as well, is written
    finish = harness.runs.finish

    def late(job: str, end: End, *rest: Step) -> bool:
        monkeypatch.setattr(harness.runs, "finish", finish)
        with pytest.raises(RuntimeError):
            look(harness, "43")
        return finish(job, end, *rest)

    monkeypatch.setattr(harness.runs, "finish", late)
    with pytest.raises(RuntimeError):
        look(harness)

    # Then nothing is left
    assert harness.serve.removed == [APP]


def test_a_run_cleans_up_after_another_failed_to_replace_it(harness: DeployHarness) -> None:
    # Given an application that starts, and a run that could not submit another version over it
    submit(harness)
    harness.accept("43")
    harness.update_state("43", plan=replace(PLAN, digest="d2"))
    harness.host.faults.fail("submit", PluginCallError("ValueError", "bad"))
    with pytest.raises(RuntimeError):
        harness.step(SERVE_RUN, lambda run: serve_run(run, harness.services, harness.serve), "43")
    assert harness.serve.removed == []

    # When the first fails
    harness.serve.application = FAILED
    with pytest.raises(RuntimeError):
        look(harness)

    # Then it leaves nothing behind
    assert harness.serve.removed == [APP]


def test_a_stopped_run_leaves_what_has_run_and_starts_again(harness: DeployHarness) -> None:
    # Given an application that has run, and whose replicas start again (their node went away)
    submit(harness)
    harness.serve.application = RUNNING
    assert look(harness) == Continue(REGISTER)
    harness.runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    harness.serve.application = DEPLOYING

    # When a run that deploys the same is stopped
    harness.accept("43")
    submit(harness, "43")
    stop("43", harness.runs)
    clean_up(harness, "43")

    # Then the application stays
    assert harness.serve.removed == []


def test_what_replaced_something_that_never_ran_is_removed(harness: DeployHarness) -> None:
    # Given an application that never ran, and a run that puts another version in its place
    harness.accept("41")
    harness.serve.application = ServeState()
    submit(harness, "41")
    harness.serve.application = replace(DEPLOYING, digests=frozenset({"d0"}))
    stop("41", harness.runs)
    submit(harness)

    # When that one does not start either
    harness.serve.application = FAILED
    with pytest.raises(RuntimeError):
        look(harness)

    # Then nothing is left
    assert harness.serve.removed == [APP]


def test_cleaning_up_after_a_stop_waits_for_the_cluster(harness: DeployHarness) -> None:
    submit(harness)
    stop("42", harness.runs)
    harness.serve.faults.fail("state", PluginHostUnavailableError("away"))
    with pytest.raises(PluginHostUnavailableError):
        clean_up(harness)
    harness.serve.faults.recover("state")
    clean_up(harness)
    assert harness.serve.removed == [APP]


def test_the_wait_starts_below_a_second_and_grows_to_five() -> None:
    waits = [poll_countdown(elapsed) for elapsed in (0, 1, 2, 4, 8, 20, 600)]
    assert waits[0] == 0.3
    assert waits == sorted(waits)
    assert waits[-1] == 5
    assert poll_countdown(20) == 2, "a deployment ends at most a tenth later than it could"


def test_a_late_second_submission_leaves_what_has_run(harness: DeployHarness) -> None:
    # Given a run whose worker died right after its submission, and another that saw the application run
    submit(harness)
    harness.accept("43")
    submit(harness, "43")
    harness.serve.application = RUNNING
    assert look(harness, "43") == Continue(REGISTER)
    harness.runs.finish("43", End(JobStatus.SUCCEEDED, {}))

    # When the first is delivered again as the replicas start anew, and is stopped
    harness.serve.application = DEPLOYING
    submit(harness)
    stop("42", harness.runs)
    clean_up(harness)

    # Then the application stays
    assert harness.serve.removed == []


@pytest.mark.parametrize("stored", [True, False], ids=["submitted by this release", "by an older one"])
def test_a_look_is_not_older_than_the_submission(
    harness: DeployHarness, monkeypatch: pytest.MonkeyPatch, clock: Clock, stored: bool
) -> None:
    # Given an application that was submitted half a second ago
    submit(harness)
    if not stored:
        harness.runs.redis.hdel(run_key("42"), "finding:submitted_at")
    clock.forward(0.5)
    ages = []
    state = harness.serve.state

    def looked(app_name: str, max_age: float = 0.0) -> ServeState:
        ages.append(max_age)
        return state(app_name)

    monkeypatch.setattr(harness.serve, "state", looked)

    # When it is looked at, then Serve's answer is not from before that
    look(harness)
    assert 0.5 <= ages[0] < 60 if stored else ages[0] == 0
