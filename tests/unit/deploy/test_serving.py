"""Submission and the wait for it."""

from dataclasses import replace

import pytest

from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.deploy.deploy_helpers import APP, DEPLOYING, FAILED, RUNNING, STORED_PLAN, Yard
from worker.deploy.cluster import ServeState, read_state
from worker.deploy.plan import AWAIT_RUNNING, REGISTER, SERVE_RUN
from worker.deploy.serve import await_running, poll_countdown, remove_after_stop, serve_run
from worker.plugins import PluginCallError, PluginHostUnavailableError
from worker.runs.model import Continue, End, Outcome, Reschedule, Step
from worker.runs.reporter import stop_run

OTHER = ServeState(True, "running", "RUNNING", "", frozenset({"d0"}))


def submit(yard: Yard, job: str = "42") -> Outcome:
    yard.update_state(job, plan=STORED_PLAN)
    return yard.step(SERVE_RUN, lambda run: serve_run(run, yard.services, yard.cluster), job)


def look(yard: Yard, job: str = "42") -> Outcome:
    return yard.step(AWAIT_RUNNING, lambda run: await_running(run, yard.services, yard.cluster), job)


def clean(yard: Yard, job: str = "42") -> None:
    remove_after_stop(job, yard.services, yard.cluster)


def test_the_application_is_submitted_once_and_waited_for(yard: Yard) -> None:
    yard.host.messages = ["replaced in place"]
    assert submit(yard) == Continue(AWAIT_RUNNING)
    assert yard.host.calls == ["submit"]
    assert "replaced in place" in yard.told()
    again = look(yard)
    assert isinstance(again, Reschedule)
    assert again.countdown <= 1
    yard.cluster.here = RUNNING
    assert look(yard) == Continue(REGISTER)


def test_the_identical_application_is_not_submitted_again(yard: Yard) -> None:
    yard.cluster.here = RUNNING
    assert submit(yard) == Continue(AWAIT_RUNNING)
    assert yard.host.calls == []
    assert look(yard) == Continue(REGISTER)


def test_another_version_is_updated_in_place(yard: Yard) -> None:
    yard.cluster.here = OTHER
    submit(yard)
    assert yard.host.calls == ["submit"]
    assert yard.cluster.removed == []


@pytest.mark.parametrize("state", [DEPLOYING, RUNNING, FAILED])
def test_a_second_delivery_after_the_submission_does_not_submit_again(yard: Yard, state: ServeState) -> None:
    submit(yard)
    yard.cluster.here = state
    assert submit(yard) == Continue(AWAIT_RUNNING)
    assert yard.host.calls == ["submit"]


def test_a_second_delivery_before_the_submission_submits(yard: Yard) -> None:
    yard.host.broken["submit"] = PluginHostUnavailableError("away")
    with pytest.raises(PluginHostUnavailableError):
        submit(yard)
    yard.host.broken.clear()
    submit(yard)
    assert yard.host.calls == ["submit", "submit"]


def test_a_submission_that_raises_leaves_nothing_behind(yard: Yard) -> None:
    yard.host.broken["submit"] = PluginCallError("ValueError", "bad")
    with pytest.raises(RuntimeError, match="failed to submit: ValueError: bad"):
        submit(yard)
    assert yard.cluster.removed == []


def test_a_deployment_that_never_ran_is_removed(yard: Yard) -> None:
    submit(yard)
    yard.cluster.here = FAILED
    with pytest.raises(RuntimeError) as failure:
        look(yard)
    expected = f"Serve application {APP} reached DEPLOY_FAILED: ValueError: no weights"
    assert str(failure.value) == expected
    assert yard.run().end.error == expected
    assert yard.cluster.removed == [APP]


def test_an_application_that_was_there_before_stays(yard: Yard) -> None:
    yard.cluster.here = OTHER
    submit(yard)
    yard.cluster.here = FAILED
    with pytest.raises(RuntimeError):
        look(yard)
    assert yard.cluster.removed == []


def test_a_failing_submission_over_an_application_that_was_there_leaves_it(yard: Yard) -> None:
    yard.cluster.here = replace(DEPLOYING, digests=frozenset({"d0"}))
    yard.host.broken["submit"] = PluginCallError("ValueError", "bad")
    with pytest.raises(RuntimeError):
        submit(yard)
    assert yard.cluster.removed == []


def test_the_end_is_the_same_when_the_worker_died_after_the_removal(yard: Yard) -> None:
    submit(yard)
    yard.cluster.here = FAILED
    errors = []
    for _ in range(2):
        run = yard.run()
        with pytest.raises(RuntimeError) as failure:
            await_running(run, yard.services, yard.cluster)
        errors.append(str(failure.value))
    assert errors[0] == errors[1]
    assert yard.cluster.removed == [APP]


def test_serves_explanation_is_told_at_the_first_failed_attempt_and_once(yard: Yard) -> None:
    submit(yard)
    yard.cluster.here = replace(DEPLOYING, reason="ValueError: no weights. Retrying 2 more time(s)")
    look(yard)
    look(yard)
    assert yard.told().count("no weights") == 1
    yard.cluster.here = replace(DEPLOYING, reason="ValueError: no weights. Retrying 1 more time(s)")
    look(yard)
    assert yard.told().count("no weights") == 2


def test_the_time_is_up(yard: Yard, clock: Clock) -> None:
    submit(yard)
    yard.cluster.here = replace(DEPLOYING, reason="no node has 64 CPUs")
    clock.forward(599)
    again = look(yard)
    assert isinstance(again, Reschedule)
    assert again.countdown < 1.1
    clock.forward(2)
    with pytest.raises(RuntimeError) as failure:
        look(yard)
    assert str(failure.value) == f"Serve application {APP} did not run within 600 s: no node has 64 CPUs"
    assert yard.cluster.removed == [APP]


def test_a_cluster_that_is_away_is_waited_for_until_the_time_is_up(yard: Yard, clock: Clock) -> None:
    submit(yard)
    yard.cluster.broken = PluginHostUnavailableError("Ray is away")
    assert isinstance(look(yard), Reschedule)
    clock.forward(601)
    with pytest.raises(RuntimeError, match="did not run within 600 s: Ray is away"):
        look(yard)


@pytest.mark.parametrize(
    ("state", "words"), [(ServeState(), "was removed"), (OTHER, "was replaced by another deployment")]
)
def test_an_application_that_is_no_longer_ours_ends_the_run(
    yard: Yard, clock: Clock, state: ServeState, words: str
) -> None:
    submit(yard)
    yard.cluster.here = state
    assert isinstance(look(yard), Reschedule)
    clock.forward(11)
    with pytest.raises(RuntimeError, match=words):
        look(yard)
    assert yard.cluster.removed == []


def test_an_application_that_vanishes_for_a_moment_is_waited_for(yard: Yard, clock: Clock) -> None:
    submit(yard)
    yard.cluster.here = ServeState()
    look(yard)
    yard.cluster.here = DEPLOYING
    look(yard)
    clock.forward(60)
    yard.cluster.here = ServeState()
    assert isinstance(look(yard), Reschedule)


def test_a_stopped_run_takes_its_half_started_application_away(yard: Yard) -> None:
    submit(yard)
    stop_run("42", yard.runs)
    clean(yard)
    clean(yard)
    assert yard.cluster.removed == [APP]


@pytest.mark.parametrize("before", [OTHER, RUNNING])
def test_a_stopped_run_leaves_what_was_there_before(yard: Yard, before: ServeState) -> None:
    yard.cluster.here = before
    submit(yard)
    stop_run("42", yard.runs)
    clean(yard)
    assert yard.cluster.removed == []


def test_a_stopped_run_leaves_what_runs(yard: Yard) -> None:
    submit(yard)
    yard.cluster.here = RUNNING
    stop_run("42", yard.runs)
    clean(yard)
    assert yard.cluster.removed == []


def test_a_stop_before_the_submission_or_of_an_unknown_job_is_nothing(yard: Yard) -> None:
    stop_run("42", yard.runs)
    clean(yard)
    clean(yard, "unknown")
    assert yard.cluster.removed == []


def test_a_stopped_run_leaves_what_another_run_waits_for_and_that_one_cleans_up(yard: Yard) -> None:
    submit(yard)
    yard.accept("43")
    submit(yard, "43")
    assert yard.host.calls == ["submit"]
    stop_run("42", yard.runs)
    clean(yard)
    assert yard.cluster.removed == []
    yard.cluster.here = FAILED
    with pytest.raises(RuntimeError):
        look(yard, "43")
    assert yard.cluster.removed == [APP]


def test_a_stopped_run_leaves_what_the_run_before_it_waits_for(yard: Yard) -> None:
    # Given two runs that deploy the same, of which the second found it on its way
    submit(yard)
    yard.accept("43")
    submit(yard, "43")

    # When the second is stopped
    stop_run("43", yard.runs)
    clean(yard, "43")

    # Then the first still has what it waits for, and takes it away when it fails
    assert yard.cluster.removed == []
    yard.cluster.here = FAILED
    with pytest.raises(RuntimeError):
        look(yard)
    assert yard.cluster.removed == [APP]


def test_of_two_runs_that_fail_at_once_one_cleans_up(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two runs that deploy the same, which does not start
    submit(yard)
    yard.accept("43")
    submit(yard, "43")
    yard.cluster.here = FAILED

    # When the second gives up before the end of the first, which gives up as well, is written
    finish = yard.runs.finish

    def late(job: str, end: End, *rest: Step) -> bool:
        monkeypatch.setattr(yard.runs, "finish", finish)
        with pytest.raises(RuntimeError):
            look(yard, "43")
        return finish(job, end, *rest)

    monkeypatch.setattr(yard.runs, "finish", late)
    with pytest.raises(RuntimeError):
        look(yard)

    # Then nothing is left
    assert yard.cluster.removed == [APP]


def test_a_run_cleans_up_although_another_failed_to_put_something_in_its_place(yard: Yard) -> None:
    # Given an application that starts, and a run that could not submit another version over it
    submit(yard)
    yard.accept("43")
    yard.update_state("43", plan=replace(STORED_PLAN, digest="d2"))
    yard.host.broken["submit"] = PluginCallError("ValueError", "bad")
    with pytest.raises(RuntimeError):
        yard.step(SERVE_RUN, lambda run: serve_run(run, yard.services, yard.cluster), "43")
    assert yard.cluster.removed == []

    # When the first fails
    yard.cluster.here = FAILED
    with pytest.raises(RuntimeError):
        look(yard)

    # Then it leaves nothing behind
    assert yard.cluster.removed == [APP]


def test_a_stopped_run_leaves_what_has_run_and_starts_again(yard: Yard) -> None:
    # Given an application that has run, and whose replicas start again (their node went away)
    submit(yard)
    yard.cluster.here = RUNNING
    assert look(yard) == Continue(REGISTER)
    yard.runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    yard.cluster.here = DEPLOYING

    # When a run that deploys the same is stopped
    yard.accept("43")
    submit(yard, "43")
    stop_run("43", yard.runs)
    clean(yard, "43")

    # Then the application stays
    assert yard.cluster.removed == []


def test_what_never_ran_is_removed_although_it_took_the_place_of_something_that_never_ran(yard: Yard) -> None:
    # Given an application that never ran, and a run that puts another version in its place
    yard.accept("41")
    yard.cluster.here = ServeState()
    submit(yard, "41")
    yard.cluster.here = replace(DEPLOYING, digests=frozenset({"d0"}))
    stop_run("41", yard.runs)
    submit(yard)

    # When that one does not start either
    yard.cluster.here = FAILED
    with pytest.raises(RuntimeError):
        look(yard)

    # Then nothing is left
    assert yard.cluster.removed == [APP]


def test_cleaning_up_after_a_stop_waits_for_the_cluster(yard: Yard) -> None:
    submit(yard)
    stop_run("42", yard.runs)
    yard.cluster.broken = PluginHostUnavailableError("away")
    with pytest.raises(PluginHostUnavailableError):
        clean(yard)
    yard.cluster.broken = None
    clean(yard)
    assert yard.cluster.removed == [APP]


def test_the_wait_starts_below_a_second_and_grows_to_five() -> None:
    waits = [poll_countdown(elapsed) for elapsed in (0, 1, 2, 4, 8, 20, 600)]
    assert waits[0] == 0.3
    assert waits == sorted(waits)
    assert waits[-1] == 5


def test_a_state_is_read_from_serves_details() -> None:
    details = {
        "status": "DEPLOY_FAILED",
        "message": "Failed to update the deployments ['X'].",
        "deployments": {
            "X": {
                "status": "DEPLOY_FAILED",
                "message": "ValueError: no weights",
                "deployment_config": {
                    "ray_actor_options": {"runtime_env": {"env_vars": {"SYNAPSE_DEPLOYMENT_DIGEST": "d1"}}}
                },
            },
            "Y": {"status": "HEALTHY", "message": ""},
        },
    }
    state = read_state(details)
    assert (state.exists, state.bucket, state.status) == (True, "failed", "DEPLOY_FAILED")
    assert "no weights" in state.reason
    assert state.has_digest("d1")
    assert not state.has_digest("d2")
    assert read_state({"status": "DEPLOYING", "deployments": {}}).has_digest("d1")
    assert not ServeState().has_digest("d1")
    assert read_state({**details, "status": "DELETING"}) == ServeState()


def test_a_late_second_delivery_of_a_submission_leaves_what_has_run_meanwhile(yard: Yard) -> None:
    # Given a run whose worker died right after its submission, and another that saw the application run
    submit(yard)
    yard.accept("43")
    submit(yard, "43")
    yard.cluster.here = RUNNING
    assert look(yard, "43") == Continue(REGISTER)
    yard.runs.finish("43", End(JobStatus.SUCCEEDED, {}))

    # When the first is delivered again as the replicas start anew, and is stopped
    yard.cluster.here = DEPLOYING
    submit(yard)
    stop_run("42", yard.runs)
    clean(yard)

    # Then the application stays
    assert yard.cluster.removed == []
