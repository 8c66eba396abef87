"""Lines on their way into Redis: each stored once, within limits, however often a call is repeated."""

import asyncio
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeRedis

from shared.channels import logs_channel, logs_history
from tests.unit.logs.relay_harness import LogOfJob, RelayHarness, ScriptedTail, until
from worker.runs.events import LOG_SCRIPT, log_args, log_keys
from worker.runs.scripts import run_scripts

RAY = "raysubmit_1"


def test_lines_sent_twice_are_stored_once(job_log: LogOfJob) -> None:
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")

    assert job_log.append(RAY, "1", 0, "one", "two") == 2
    assert job_log.append(RAY, "1", 0, "one", "two") == 2
    assert job_log.lines() == ["one", "two"]


def test_lines_sent_again_with_more_lines_are_stored_once(job_log: LogOfJob) -> None:
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")

    assert job_log.append(RAY, "1", 0, "one", "two") == 2
    assert job_log.append(RAY, "1", 0, "one", "two", "three") == 3
    assert job_log.lines() == ["one", "two", "three"]


def test_lines_beyond_the_limit_of_the_job_are_not_stored(job_log: LogOfJob) -> None:
    for claim, name in enumerate(("a", "b"), 1):
        job_log.subscribe(name)
        job_log.claim(name, str(claim))

    assert job_log.append("a", "1", 0, "1", "2", max_lines=3) == 2
    assert job_log.append("b", "2", 0, "3", "4", max_lines=3) == 1
    assert job_log.append("b", "2", 0, "3", "4", max_lines=3) == 1
    assert job_log.append("a", "1", 2, "x", max_lines=3) == 0


def test_bytes_beyond_the_limit_of_the_job_are_not_stored(job_log: LogOfJob) -> None:
    job_log.subscribe(RAY)
    job_log.claim(RAY, "1")

    assert job_log.append(RAY, "1", 0, "가나다", "abc", max_bytes=12) == 1


def test_broken_log_does_not_block_the_others_in_a_call(
    redis: FakeRedis,
) -> None:
    # Given logs of three jobs: one with a broken history, and one that another relay has claimed
    job_logs = [LogOfJob(redis, name) for name in ("a", "b", "c")]
    for job_log, claim in zip(job_logs, "121", strict=True):
        job_log.subscribe(RAY)
        job_log.claim(RAY, claim)
    redis.delete(logs_history("a"))
    redis.set(logs_history("a"), "no stream")

    # When one call appends lines to all of them
    keys = [key for job_log in job_logs for key in log_keys(job_log.job)]
    batches = [
        part for job_log in job_logs for part in (logs_channel(job_log.job), RAY, 1, 0, 2, "one", "two")
    ]
    arguments = log_args("append_lines", "", "now", "info", 1000, 10**6, *batches)
    answers = run_scripts(redis).run(LOG_SCRIPT, keys, *arguments)

    # Then each log has its own answer
    assert "WRONGTYPE" in answers[0]
    assert answers[1:] == [-1, 2]
    assert job_logs[2].lines() == ["one", "two"]
    assert [entry["line"] for entry in job_logs[2].published()] == ["one", "two"]


async def test_lines_are_kept_while_redis_is_unavailable(
    harness: RelayHarness, job_log: LogOfJob, monkeypatch: pytest.MonkeyPatch, async_redis: FakeAsyncRedis
) -> None:
    # Given a Redis that fails the first calls that append lines
    original, failures = async_redis.evalsha, [ConnectionError(), ConnectionError()]

    def evalsha(sha: str, keys: int, *args: Any) -> Any:
        if "append_lines" in args and failures:
            raise failures.pop()
        return original(sha, keys, *args)

    monkeypatch.setattr(async_redis, "evalsha", evalsha)
    harness.source.tails[RAY] = [ScriptedTail([["one", "two"]], completed=True)]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines() == ["one", "two"]
    assert not failures


async def test_scripts_flushed_by_redis_are_loaded_again(
    harness: RelayHarness, job_log: LogOfJob, redis: FakeRedis
) -> None:
    async def flush_scripts() -> None:
        await until(lambda: job_log.lines() == ["one"])
        redis.script_flush()

    harness.source.tails[RAY] = [ScriptedTail([["one"], flush_scripts, ["two"]], completed=True)]
    job_log.subscribe(RAY)

    harness.start_relay()
    await until(job_log.is_closed)

    assert job_log.lines() == ["one", "two"]


async def test_slow_redis_slows_the_reader_down(
    harness: RelayHarness, job_log: LogOfJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a writer that never writes, and a long log
    batches_read = 0

    async def count_batch() -> None:
        nonlocal batches_read
        batches_read += 1

    monkeypatch.setattr("worker.logs.writer.LogWriter.run", lambda _self: asyncio.sleep(3600))
    harness.source.tails[RAY] = [
        ScriptedTail([step for _ in range(1000) for step in (["x"] * 10, count_batch)])
    ]
    job_log.subscribe(RAY)

    # When the log is tailed with a buffer of a hundred lines
    harness.start_relay(queue_size=100)
    await until(lambda: batches_read >= 10)
    # The reader gets many chances to read more.
    for _ in range(200):
        await asyncio.sleep(0)

    # Then no more lines are read than the buffer holds
    assert batches_read <= 11
