"""The message of a retry, and why there is none; the command line and the live page both send it."""

import pytest
from fakeredis import FakeRedis

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.unit.workflow.failed_tasks import PARAMS, add_failed_run, expire_run
from worker.runs.model import End
from worker.runs.runs import Runs
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.ended_runs import EndedRuns
from worker.workflow.retry import RetryError, RetryProblem, check_job_is_free, is_retryable, retry_message


def accept(runs: Runs, job: str) -> None:
    message = DeployMessage.model_validate({"job": job, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")


def problem_of(redis: FakeRedis, job: str, new_job: object = "8") -> RetryProblem:
    with pytest.raises(RetryError) as caught:
        retry_message(redis, job, new_job)
    return caught.value.problem


def test_message_is_that_of_the_run_for_its_failed_tasks(runs: Runs, redis: FakeRedis) -> None:
    # Given an ended run with failed tasks, whose own keys have expired
    add_failed_run(redis, runs, "7", 5, 6)
    expire_run(redis, "7")
    assert is_retryable(EndedRuns(redis).get("7"))

    # When it is to be retried
    message = retry_message(redis, "7", 8)

    # Then its message is sent again as the new job, without the options of that run
    assert message.model_dump(mode="json", exclude_unset=True) == {
        "job": "8",
        "plugin": "digits@1.0.0",
        "params": PARAMS,
        "tenant": "acme",
        "only_failed_of": "7",
    }


def test_what_cannot_be_retried_has_its_reason(runs: Runs, redis: FakeRedis) -> None:
    # Given a live run, an ended one of deploy, and one without failed tasks
    accept(runs, "live")
    accept(runs, "deployed")
    runs.finish("deployed", End(JobStatus.SUCCEEDED, {}))
    add_failed_run(redis, runs, "fine")

    # Then each has its reason, and none is said to be retryable
    assert problem_of(redis, "live") == RetryProblem.LIVE
    assert problem_of(redis, "unknown") == RetryProblem.NOT_KEPT
    assert problem_of(redis, "deployed") == RetryProblem.NO_TASKS
    assert problem_of(redis, "fine") == RetryProblem.NONE_FAILED
    ended = EndedRuns(redis)
    assert not any(is_retryable(ended.get(job)) for job in ("live", "unknown", "deployed", "fine"))


@pytest.mark.parametrize("new_job", ["", "a b", "x" * 200, None, ["8"], {"a": 1}])
def test_what_is_no_job_retries_nothing(runs: Runs, redis: FakeRedis, new_job: object) -> None:
    add_failed_run(redis, runs, "7", 5)

    assert problem_of(redis, "7", new_job) == RetryProblem.INVALID


def test_a_job_with_a_run_is_taken(runs: Runs, redis: FakeRedis) -> None:
    # Given jobs whose runs live, have ended, and have ended days ago, and one whose message was rejected
    accept(runs, "live")
    add_failed_run(redis, runs, "ended", 5)
    add_failed_run(redis, runs, "days-ago", 5)
    expire_run(redis, "days-ago")
    letters = DeadLetters(redis)
    letters.start_rejecting("rejected")
    letters.mark_rejected("rejected")

    # Then only another one is free
    for job in ("live", "ended", "days-ago", "rejected"):
        with pytest.raises(RetryError, match=f"job {job} has a run already") as caught:
            check_job_is_free(redis, job)
        assert caught.value.problem == RetryProblem.JOB_TAKEN
    check_job_is_free(redis, "8")
