"""One log is read to its end over any number of connections, and a log that has none is given up."""

import pytest
from fakeredis import FakeRedis

from tests.unit.logs.relay_harness import LogOfJob, RelayHarness, ScriptedTail, until
from worker.logs import tailer
from worker.logs.subscriptions import log_owners_key
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    NotFoundError,
    register_secrets,
)
from worker.platform.errors import StreamLimitExceededError
from worker.runs.keys import open_logs_key

RAY = "raysubmit_1"


BROKEN = ClientConnectionError("the connection was lost")


async def test_log_is_read_to_its_end(harness: RelayHarness, job_log: LogOfJob, redis: FakeRedis) -> None:
    harness.source.tails[RAY] = [ScriptedTail([["one", "two"], ["three"]], completed=True)]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines() == ["one", "two", "three"]
    assert job_log.end_marker()["reason"] == "ended"
    await until(lambda: not redis.zcard(open_logs_key()) and not redis.hlen(log_owners_key()))


async def test_log_of_a_stopped_job_ends_with_that_reason(harness: RelayHarness, job_log: LogOfJob) -> None:
    harness.source.tails[RAY] = [ScriptedTail([["one"]], completed=True)]
    harness.source.statuses[RAY] = ["STOPPED"]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.end_marker()["reason"] == "stopped"


@pytest.mark.parametrize("completed", [True, False])
async def test_a_job_that_failed_before_its_driver_says_why(
    harness: RelayHarness, job_log: LogOfJob, completed: bool
) -> None:
    # Given a job whose log stays empty, because what it needs cannot be installed
    register_secrets(["a-known-secret"])
    harness.source.tails[RAY] = [ScriptedTail([], completed=completed)]
    harness.source.statuses[RAY] = ["PENDING", "FAILED"] if not completed else ["FAILED"]
    harness.source.message = f"runtime_env setup failed:\n{'pip ' * 2_000}\n No match: a-known-secret\n"
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    # Then the last word is Ray's, with both of its ends and without secrets
    (line,) = job_log.lines()
    assert line.startswith(f"The Ray job {RAY} FAILED: runtime_env setup failed: pip pip")
    assert line.endswith("pip No match: ***")
    assert len(line) < 2_100
    assert job_log.end_marker()["reason"] == "ended"


@pytest.mark.parametrize("first", [[BROKEN, BROKEN], ["RUNNING"]], ids=["unavailable", "late"])
async def test_a_complete_log_waits_for_the_status_of_its_job(
    harness: RelayHarness, job_log: LogOfJob, first: list[str | ClientConnectionError]
) -> None:
    # Given an agent that cannot say yet how the job of the log ended that it has just sent to its end
    harness.source.tails[RAY] = [ScriptedTail([], completed=True)]
    harness.source.statuses[RAY] = [*first, "FAILED"]
    harness.source.message = "runtime_env setup failed"
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines() == [f"The Ray job {RAY} FAILED: runtime_env setup failed"]


async def test_a_complete_log_ends_without_the_status_of_its_job(
    harness: RelayHarness, job_log: LogOfJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailer, "FINAL_STATUS_SECONDS", 0.5)
    harness.source.tails[RAY] = [ScriptedTail([["one"]], completed=True)]
    harness.source.statuses[RAY] = [BROKEN]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines() == ["one"]
    assert job_log.end_marker()["reason"] == "ended"


async def test_a_driver_that_failed_is_named_after_its_log(harness: RelayHarness, job_log: LogOfJob) -> None:
    harness.source.tails[RAY] = [ScriptedTail([["one"]], completed=True)]
    harness.source.statuses[RAY] = ["FAILED"]
    harness.source.message = "Job entrypoint command failed with exit code -9, last available logs (x):\none"
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    failure = f"The Ray job {RAY} FAILED: Job entrypoint command failed with exit code -9"
    assert job_log.lines() == ["one", failure]


async def test_lost_connection_is_resumed_after_the_last_line(
    harness: RelayHarness, job_log: LogOfJob
) -> None:
    harness.source.tails[RAY] = [
        ScriptedTail([["one", "two"], BROKEN]),
        ScriptedTail([BROKEN]),
        ScriptedTail([["one"], ["two", "three"], BROKEN]),
        ScriptedTail([["one", "two", "three", "four"]], completed=True),
    ]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines() == ["one", "two", "three", "four"]


async def test_unmarked_end_is_read_again_once_the_job_has_ended(
    harness: RelayHarness, job_log: LogOfJob
) -> None:
    # Given an agent that does not mark the end, and a job that ends between two connections
    harness.source.tails[RAY] = [
        ScriptedTail([["one"]], partial_line="tw"),
        ScriptedTail([["one"]], partial_line="tw"),
        ScriptedTail([["one", "two"]], partial_line="half a line"),
    ]
    harness.source.statuses[RAY] = ["RUNNING", "SUCCEEDED"]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    # Then the text after the last line break becomes a line only when the job has ended
    assert job_log.lines() == ["one", "two", "half a line"]


async def test_job_that_prints_nothing_is_not_unreachable(harness: RelayHarness, job_log: LogOfJob) -> None:
    harness.source.tails[RAY] = [ScriptedTail([ClientTimeoutError()])] * 5 + [
        ScriptedTail([["one"]], completed=True)
    ]
    harness.source.statuses[RAY] = ["RUNNING"] * 5 + ["SUCCEEDED"]
    job_log.subscribe(RAY)

    harness.start_relay(retry_budget_seconds=0.01)
    await until(job_log.is_closed)

    assert job_log.lines() == ["one"]
    assert job_log.end_marker()["reason"] == "ended"


async def test_log_of_an_ended_job_ends_on_an_open_connection(
    harness: RelayHarness, job_log: LogOfJob
) -> None:
    harness.source.tails[RAY] = [ScriptedTail([["one"], ClientTimeoutError()], partial_line="half a line")]
    harness.source.statuses[RAY] = ["RUNNING", "SUCCEEDED"]
    job_log.subscribe(RAY)

    harness.start_relay(retry_budget_seconds=60)
    await until(job_log.is_closed)

    assert job_log.lines() == ["one", "half a line"]
    assert job_log.end_marker()["reason"] == "ended"


async def test_log_of_an_ended_job_without_lines_is_unreachable(
    harness: RelayHarness, job_log: LogOfJob
) -> None:
    harness.source.tails[RAY] = [ScriptedTail([ClientTimeoutError()])]
    job_log.subscribe(RAY)

    harness.start_relay(retry_budget_seconds=0.2)
    await until(job_log.is_closed)

    assert job_log.end_marker()["reason"] == "unreachable"


async def test_an_unreachable_log_of_a_failed_job_says_why(harness: RelayHarness, job_log: LogOfJob) -> None:
    # Given an agent that leaves the connection open, although the job failed before it could print
    harness.source.tails[RAY] = [ScriptedTail([ClientTimeoutError()])]
    harness.source.statuses[RAY] = ["FAILED"]
    harness.source.message = "runtime_env setup failed"
    job_log.subscribe(RAY)

    harness.start_relay(retry_budget_seconds=0.2)
    await until(job_log.is_closed)

    assert job_log.lines()[-1].endswith(f" The Ray job {RAY} FAILED: runtime_env setup failed")


async def test_log_unreachable_for_too_long_ends_and_says_so(
    harness: RelayHarness, job_log: LogOfJob
) -> None:
    harness.source.tails[RAY] = [ScriptedTail([["one"], BROKEN]), ScriptedTail([BROKEN])]
    job_log.subscribe(RAY)

    harness.start_relay(retry_budget_seconds=0.2)
    await until(job_log.is_closed)

    assert job_log.lines() == [
        "one",
        f"The log of {RAY} is not followed further: it cannot be reached (the connection was lost).",
    ]
    assert job_log.history()[-2]["source"] == "relay"
    assert job_log.end_marker()["reason"] == "unreachable"


async def test_log_of_an_unknown_job_is_given_up_sooner(
    harness: RelayHarness, job_log: LogOfJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailer, "UNKNOWN_JOB_SECONDS", 0.05)
    harness.source.tails[RAY] = [ScriptedTail([NotFoundError("404 Not Found")])]
    job_log.subscribe(RAY)

    harness.start_relay(retry_budget_seconds=3600)
    await until(job_log.is_closed)

    assert job_log.end_marker()["reason"] == "unreachable"


async def test_log_beyond_the_stream_limit_ends_with_that_reason(
    harness: RelayHarness, job_log: LogOfJob
) -> None:
    harness.source.tails[RAY] = [ScriptedTail([["one", "two"], StreamLimitExceededError("too long")])]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines()[:2] == ["one", "two"]
    assert job_log.end_marker()["reason"] == "limit"


async def test_limit_of_lines_holds_for_all_logs_of_a_job(harness: RelayHarness, job_log: LogOfJob) -> None:
    for name in ("a", "b"):
        harness.source.tails[name] = [ScriptedTail([[name] * 6], completed=True)]
        job_log.subscribe(name)

    harness.start_relay(max_lines=10)
    await until(job_log.is_closed)

    assert sum(line in "ab" for line in job_log.lines()) == 10
    assert job_log.end_marker()["reason"] == "limit"


async def test_secrets_in_a_relayed_line_are_masked_in_place(
    harness: RelayHarness, job_log: LogOfJob
) -> None:
    register_secrets(["a-known-secret"])
    printed = "\x1b[31mred\x1b[0m 한국어 https://x/?q=1 Authorization: Bearer abc token=def a-known-secret"
    harness.source.tails[RAY] = [ScriptedTail([[printed]], completed=True)]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines() == ["\x1b[31mred\x1b[0m 한국어 https://x/?q=1 Authorization: *** token=*** ***"]
