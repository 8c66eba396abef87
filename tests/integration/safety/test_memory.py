"""What the worker leaves in a real Redis is bounded: runs that wait, logs of ended jobs, dead letters."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from redis import Redis

from shared.channels import dead_letters_key, logs_history
from shared.follower import LogFollower
from shared.messages import DeployMessage
from shared.redis_url import read_redis_url
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.pre_processor.waitlist_harness import PARAMS, WaitlistHarness, make_services
from worker.logs.retention import TOTAL_FIELD, EndedLogs
from worker.pre_processor.waitlist import DETECT
from worker.runs.keys import ended_logs_key, kept_log_sizes_key, kept_logs_key, patched_key
from worker.runs.model import STOPPED, AnyRun, Continue
from worker.runs.reports import reporter
from worker.runs.runs import Runs, Timing
from worker.sandbox.servers import RedisServer
from worker.to_task.steps import INITIALIZE, PREPARE
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.ended_runs import EndedRuns
from worker.workflow.intake import begin_run

DAY = 24 * 60 * 60
EXAMPLE = Path(__file__).parents[3] / "examples" / "plugins" / "digits@1.0.0"
MB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    client = read_redis_url(server.url).client(decode_responses=True)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def runs(redis: Redis) -> Runs:
    return Runs(redis, RecordingPublisher(), Timing(60.0))


def size_of(redis: Redis, job: str) -> int:
    """The bytes of all keys of a job."""
    keys = list(redis.scan_iter(f"synapse:jobs:{{{job}}}*", count=1000))
    return sum(redis.memory_usage(key, samples=0) for key in keys)


def end_a_job(runs: Runs, job: str, lines: int = 0) -> None:
    """A run writes a log, ends, and its end is reported."""
    runs.store.accept(DeployMessage(job=job, plugin="digits@1.0.0", agent=1), "deploy")
    for number in range(lines):
        runs.events.log.append(job, f"line {number} {'x' * 100}", "info")
    runs.finish(job, STOPPED)
    runs.store.mark_reported(job)


def test_a_run_that_waits_takes_two_kilobytes(redis: Redis, tmp_path: Path) -> None:
    # Given a run that waits for a pre-processor, and is reported as RUNNING
    harness = WaitlistHarness(make_services(redis, RecordingPublisher(), tmp_path), RecordingPublisher())
    config = yaml.safe_load((EXAMPLE / "config.yaml").read_text(encoding="utf-8"))
    assert len(json.dumps(config)) > 500
    harness.backend.release["config"] = config
    harness.wait("1")  # it dispatches

    def begin(run: object) -> Continue:
        begin_run(run, harness.services)
        return Continue(INITIALIZE)

    def prepare(run: AnyRun) -> Continue:
        harness.runs.set_progress(run, "prepare", 10)
        return Continue(DETECT)

    job, params = "1234567", {**PARAMS, "name": "first pass of the autumn images", "project": 4711}
    harness.accept(job, params=params)
    harness.worker.run_step(INITIALIZE, begin, job=job)
    harness.worker.run_step(PREPARE, prepare, job=job)
    harness.wait(job)
    reporter.report(job, harness.runs, lambda _: harness.backend)

    # Then all its keys together are small, once the second is over in which nothing more is reported
    assert harness.waiting() == ["1", job]
    assert 0 < redis.pttl(patched_key(job)) <= 1000
    redis.delete(patched_key(job))
    assert size_of(redis, job) <= 2048


def test_a_short_log_takes_little_more_than_its_lines(redis: Redis, runs: Runs) -> None:
    end_a_job(runs, "1", lines=2)
    assert redis.memory_usage(logs_history("1")) < 1500
    assert 0 < redis.ttl(logs_history("1")) <= DAY


def test_of_the_logs_of_ended_jobs_the_oldest_are_removed(redis: Redis, runs: Runs) -> None:
    # Given logs of some 100 KB each, one of them of a job that goes on
    runs.store.accept(DeployMessage(job="live", plugin="digits@1.0.0", agent=1), "deploy")
    for number in range(1000):
        runs.events.log.append("live", f"line {number} {'x' * 100}", "info")
    logs = EndedLogs(redis, MB // 2, DAY)
    for job in range(10):
        end_a_job(runs, str(job), lines=1000)
        logs.trim()

    # Then those of the latest jobs are there
    lengths = [redis.xlen(logs_history(str(job))) for job in range(10)]
    assert lengths[0] == 1
    assert lengths[-1] > 1000
    assert sum(redis.memory_usage(logs_history(str(job))) for job in range(10)) < MB // 2 + 20_000
    assert redis.xlen(logs_history("live")) == 1000
    # And who follows one of the others hears that it is over
    follower = LogFollower(redis, "0")
    assert list(follower) == []
    assert follower.reason == "stopped"
    assert 0 < redis.ttl(logs_history("0")) <= DAY


def test_a_log_of_an_ended_job_is_removed_after_its_time(redis: Redis, runs: Runs) -> None:
    end_a_job(runs, "1", lines=10)
    EndedLogs(redis, MB, DAY).trim()
    assert redis.xlen(logs_history("1")) > 10
    EndedLogs(redis, MB, -1).trim()
    assert redis.xlen(logs_history("1")) == 1
    assert redis.zcard(kept_logs_key()) == redis.zcard(ended_logs_key()) == 0
    assert redis.hgetall(kept_log_sizes_key()) == {TOTAL_FIELD: "0"}


def test_a_trim_costs_the_same_however_many_logs_are_kept(redis: Redis, runs: Runs) -> None:
    # Given the commands of a trim with few logs and with many
    logs, counts = EndedLogs(redis, 100 * MB, DAY), []
    for job in range(60):
        end_a_job(runs, str(job), lines=1)
        if job in (1, 59):
            logs.trim()
            redis.config_resetstat()
            logs.trim()
            counts.append(sum(stat["calls"] for stat in redis.info("commandstats").values()))
    assert counts[0] == counts[1]


def test_dead_letters_have_a_limit(redis: Redis) -> None:
    # Given letters of 10 KB each, the first about rejected jobs
    letters = DeadLetters(redis)
    for number in range(200):
        kwargs = {"job": number, "filler": "x" * 10_000}
        letters.add("deploy", [[], kwargs], "wrong", job=str(number))
        letters.mark_rejected(str(number))
    first = next(letters.all()).id

    # When they are trimmed
    letters.trim(MB, DAY)

    # Then the oldest are gone, and with them that a replay may open their jobs
    assert 0.5 * MB < redis.memory_usage(dead_letters_key()) <= MB
    assert letters.get(first) is None
    assert not letters.is_rejected("0")
    assert letters.is_rejected("199")
    kept = redis.xlen(dead_letters_key())
    letters.trim(MB, DAY)
    assert redis.xlen(dead_letters_key()) == kept


def test_one_dead_letter_is_kept_whatever_its_size(redis: Redis) -> None:
    letters = DeadLetters(redis)
    for number in range(3):
        letters.add("deploy", [[], {"job": number, "filler": "x" * 100_000}], "wrong")
    letters.trim(1000, DAY)
    assert [letter.job for letter in letters.all()] == ["2"]


def test_dead_letters_have_an_age(redis: Redis) -> None:
    letters = DeadLetters(redis)
    letters.add("deploy", [[], {"job": 1}], "wrong")
    letters.trim(MB, DAY)
    assert redis.xlen(dead_letters_key()) == 1
    letters.trim(MB, -1)
    assert redis.xlen(dead_letters_key()) == 0


@pytest.mark.parametrize("damaged", [b"\xff", "many"], ids=repr)
def test_a_damaged_total_of_logs_is_counted_again(redis: Redis, runs: Runs, damaged: str | bytes) -> None:
    # Given the logs of two jobs, and a total that is no number
    for job in "12":
        end_a_job(runs, job, lines=10)
    logs = EndedLogs(redis, MB, DAY)
    logs.trim()
    total = redis.hget(kept_log_sizes_key(), TOTAL_FIELD)
    redis.hset(kept_log_sizes_key(), TOTAL_FIELD, damaged)

    # When the next look comes, then it is the sum again
    logs.trim()
    assert redis.hget(kept_log_sizes_key(), TOTAL_FIELD) == total != "0"


def test_a_job_whose_name_is_no_text_is_looked_at_once(redis: Redis, runs: Runs) -> None:
    end_a_job(runs, "1", lines=10)
    redis.zadd(ended_logs_key(), {b"\xff": 0})

    EndedLogs(redis, MB, DAY).trim()

    assert redis.zcard(ended_logs_key()) == 0
    assert redis.zrange(kept_logs_key(), 0, -1) == ["1"]


def test_a_log_with_a_damaged_size_is_removed_as_any(redis: Redis, runs: Runs) -> None:
    # Given a log whose size is damaged
    end_a_job(runs, "1", lines=10)
    EndedLogs(redis, MB, DAY).trim()
    redis.hset(kept_log_sizes_key(), "1", "many")

    # When all take too much
    EndedLogs(redis, 1, DAY).trim()

    # Then it is removed nevertheless
    assert redis.zcard(kept_logs_key()) == 0


def test_a_damaged_sum_of_ended_runs_keeps_no_run_from_ending(redis: Redis, runs: Runs) -> None:
    # Given a sum of what ended runs take that is no number
    end_a_job(runs, "1")
    redis.hset("synapse:ended:sizes", ":total", "many")

    # When another one ends, and old ones are to be forgotten
    end_a_job(runs, "2")
    EndedRuns(redis).trim(MB, DAY)

    # Then both are kept, and the sum is a number
    assert EndedRuns(redis).count() == 2
    assert int(redis.hget("synapse:ended:sizes", ":total")) > 0
