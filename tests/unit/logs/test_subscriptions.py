"""Subscriptions to logs and the claims on them."""

from fakeredis import FakeRedis

from shared.statuses import JobStatus
from tests.unit.logs.relay_harness import LogOfJob
from worker.runs.model import End
from worker.runs.runs import Runs

RAY = "raysubmit_1"


def test_subscription_after_the_end_reopens_the_log(live_runs: Runs, job_log: LogOfJob) -> None:
    # Given the closed log of a run
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    assert job_log.is_closed()

    # When another log is subscribed to and has lines
    assert job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    job_log.append(RAY, "1", 0, "late")
    assert not job_log.is_closed()
    job_log.close(RAY, "1")

    # Then the end marker is there once, and last
    assert job_log.lines()[-1] == "late"
    assert job_log.end_marker()["reason"] == "ended"


def test_second_subscription_to_a_log_changes_nothing(job_log: LogOfJob, redis: FakeRedis) -> None:
    assert job_log.subscribe(RAY)
    assert job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    job_log.close(RAY, "1")

    assert not job_log.subscribe(RAY)
    assert job_log.end_marker()["reason"] == "ended"


def test_unreachable_log_can_be_subscribed_to_again(job_log: LogOfJob) -> None:
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    job_log.append(RAY, "1", 0, "one")
    job_log.close(RAY, "1", "unreachable", "It is gone.")
    assert job_log.end_marker()["reason"] == "unreachable"

    assert job_log.subscribe(RAY)
    assert job_log.claim(RAY, "2")[0] == 1
    job_log.append(RAY, "2", 1, "two")
    job_log.close(RAY, "2")

    assert job_log.lines() == ["one", "It is gone.", "two"]
    assert job_log.end_marker()["reason"] == "ended"


def test_relay_that_lost_its_claim_cannot_write(job_log: LogOfJob) -> None:
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")
    job_log.append(RAY, "1", 0, "one")
    assert job_log.claim(RAY, "2") == [1, '{"agent": null, "protocol": "stream"}']

    assert job_log.append(RAY, "1", 1, "two") == -1
    assert job_log.close(RAY, "1") == 0
    assert job_log.claim(RAY, "1") == []
    assert job_log.lines() == ["one"]
