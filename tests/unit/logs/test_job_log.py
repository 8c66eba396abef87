"""The log of a job (`worker.runs.events`): one numbering for all sources, and one end marker, last."""

from fakeredis import FakeRedis

from shared.channels import RETENTION_SECONDS, logs_history
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.unit.logs.relay_harness import LogOfJob
from worker.runs.events import log_state_key
from worker.runs.model import End
from worker.runs.runs import Runs

RAY = "raysubmit_1"


def test_run_and_logs_share_one_numbering(live_runs: Runs, job_log: LogOfJob) -> None:
    # Given a run and a subscription to a log
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")

    # When both write
    live_runs.events.message("42", "first")
    job_log.append(RAY, "1", 0, "second", "third")
    live_runs.events.message("42", "fourth", level="warning")

    # Then the channel and the history have the same entries, numbered from 1
    shown = [(e["seq"], e["source"], e["level"], e["line"]) for e in job_log.history()]
    assert shown == [
        (1, "run", "info", "first"),
        (2, RAY, "info", "second"),
        (3, RAY, "info", "third"),
        (4, "run", "warning", "fourth"),
    ]
    assert job_log.published() == job_log.history()


def test_message_of_several_lines_is_several_lines(live_runs: Runs, job_log: LogOfJob) -> None:
    live_runs.events.message("42", "Traceback\n  한국어 \ud800 end")

    assert job_log.lines()[0] == "Traceback"
    assert job_log.lines()[1].startswith("  한국어 ")


def test_secret_in_a_message_does_not_reach_the_log(live_runs: Runs, job_log: LogOfJob) -> None:
    live_runs.events.message("42", "Authorization: Token 0123456789abcdef")

    assert "0123456789abcdef" not in str(job_log.history())


def test_message_of_an_unknown_run_is_not_logged(runs: Runs, job_log: LogOfJob, redis: FakeRedis) -> None:
    runs.events.log.append("42", "hello", "info")

    assert not redis.exists(log_state_key("42"))
    assert job_log.history() == []


def test_log_without_subscriptions_ends_with_the_run(live_runs: Runs, job_log: LogOfJob) -> None:
    live_runs.events.message("42", "hello")
    live_runs.finish("42", End(JobStatus.FAILED, {"error": "out of memory"}))
    live_runs.ensure_end_reported("42")

    assert job_log.lines() == ["hello", "FAILED out of memory"]
    assert job_log.end_marker()["reason"] == "ended"
    assert job_log.published()[-1] == job_log.end_marker()


def test_log_of_a_stopped_run_ends_with_that_reason(live_runs: Runs, job_log: LogOfJob) -> None:
    live_runs.finish("42", End(JobStatus.STOPPED, {"error": "stopped"}))

    assert job_log.end_marker()["reason"] == "stopped"


def test_end_waits_for_the_run_and_every_subscribed_log(live_runs: Runs, job_log: LogOfJob) -> None:
    # Given a run and subscriptions to two logs
    for claim, name in enumerate(("a", "b"), 1):
        job_log.subscribe(name)
        job_log.claim(name, str(claim))

    # When one ends, then the run, then the other
    job_log.close("a", "1")
    assert not job_log.is_closed()
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    assert not job_log.is_closed()
    job_log.append("b", "2", 0, "still here")
    job_log.close("b", "2")

    # Then the end marker comes last
    assert job_log.end_marker()["reason"] == "ended"


def test_end_states_the_most_severe_reason(runs: Runs, job_log: LogOfJob) -> None:
    for claim, name in enumerate("abc", 1):
        job_log.subscribe(name)
        job_log.claim(name, str(claim))
    for claim, (name, reason) in enumerate([("a", "stopped"), ("b", "limit"), ("c", "ended")], 1):
        job_log.close(name, str(claim), reason)

    assert job_log.end_marker()["reason"] == "limit"


def test_message_after_the_end_is_not_logged(live_runs: Runs, job_log: LogOfJob) -> None:
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    live_runs.events.message("42", "too late")

    assert "too late" not in job_log.lines()
    assert job_log.end_marker()["seq"] == 2


def test_closed_log_is_reopened_by_a_later_run(runs: Runs, job_log: LogOfJob) -> None:
    # Given the closed log of a job without a run
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    job_log.append(RAY, "1", 0, "early")
    job_log.close(RAY, "1")
    assert job_log.is_closed()

    # When a run of the job writes a message
    runs.redis.hset("synapse:jobs:{42}:run", mapping={"message": "{}", "queue": "deploy", "position": 0})
    runs.events.log.append("42", "a run", "info")

    # Then the message is in the log, which is open again
    assert job_log.lines() == ["early", "a run"]
    assert not job_log.is_closed()


def test_log_without_a_run_expires_a_day_after_its_end(job_log: LogOfJob, redis: FakeRedis) -> None:
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    job_log.append(RAY, "1", 0, "one")
    assert {redis.ttl(key) for key in redis.keys("synapse:jobs:*")} == {-1}

    job_log.close(RAY, "1")

    assert {redis.ttl(key) for key in redis.keys("synapse:jobs:*")} == {RETENTION_SECONDS}


def test_open_log_of_a_reported_run_does_not_expire(
    live_runs: Runs, job_log: LogOfJob, redis: FakeRedis
) -> None:
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    live_runs.store.mark_reported("42")
    assert redis.ttl(log_state_key("42")) == -1

    job_log.append(RAY, "1", 0, "one")
    job_log.close(RAY, "1")

    assert {redis.ttl(key) for key in redis.keys("synapse:jobs:*")} == {RETENTION_SECONDS}


def test_log_reopened_by_a_later_run_does_not_expire(runs: Runs, job_log: LogOfJob, redis: FakeRedis) -> None:
    # Given a log that was closed before the run of its job began, and therefore expires
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    job_log.close(RAY, "1")
    assert redis.ttl(log_state_key("42")) == RETENTION_SECONDS

    # When the run writes a message
    message = DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")
    runs.events.log.append("42", "it begins", "info")

    # Then the log stays until the run has ended
    assert (redis.ttl(log_state_key("42")), redis.ttl(logs_history("42"))) == (-1, -1)
