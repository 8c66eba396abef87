"""Ended runs are listed by time and status for longer than their keys, and are forgotten in time."""

from types import SimpleNamespace

import fakeredis
import pytest
from fakeredis import FakeRedis

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.workflow.harness import FakeServices
from worker import maintenance
from worker.runs.keys import ended_run_key, ended_runs_key, failed_tasks_key
from worker.runs.model import End
from worker.runs.runs import Runs, Timing
from worker.settings import MB
from worker.workflow import ended_runs
from worker.workflow.ended_runs import EndedRun, EndedRuns, Position

SIZES = "synapse:ended:sizes"
WEEK = 7 * 24 * 60 * 60


def accept(runs: Runs, *jobs: str) -> None:
    for job in jobs:
        message = DeployMessage.model_validate({"job": job, "plugin": "digits@1.0.0", "agent": 1})
        runs.store.accept(message, "deploy")


def end(runs: Runs, status: JobStatus, *jobs: str) -> None:
    accept(runs, *jobs)
    runs.finish_all(jobs, End(status, {"error": "no"} if status is JobStatus.FAILED else {}))


def listed(redis: FakeRedis, status: JobStatus | None = None, since: float = 0.0) -> list[str]:
    return [run.job for run in EndedRuns(redis).newest(status, since)]


def test_ended_runs_are_listed_the_last_one_first(runs: Runs, redis: FakeRedis, clock: Clock) -> None:
    # Given runs that ended one after the other, and one that is live
    for job, status in (("1", JobStatus.FAILED), ("2", JobStatus.SUCCEEDED), ("3", JobStatus.FAILED)):
        end(runs, status, job)
        clock.forward(60)
    accept(runs, "4")

    # Then all ended ones are listed, or those with one status, or those since a time
    assert listed(redis) == ["3", "2", "1"]
    assert listed(redis, JobStatus.FAILED) == ["3", "1"]
    assert listed(redis, since=clock.time() - 150) == ["3", "2"]
    assert listed(redis, JobStatus.STOPPED) == []


def test_what_is_known_of_an_ended_run_outlives_its_keys(runs: Runs, redis: FakeRedis) -> None:
    # Given an ended run whose own keys have expired
    end(runs, JobStatus.FAILED, "42")
    redis.delete(*redis.keys("synapse:jobs:*"))

    # When it is read
    run = EndedRuns(redis).get("42")

    # Then its record and its message are there
    assert run is not None
    assert (run.status, run.record["error"], run.record["plugin"]) == ("FAILED", "no", "digits@1.0.0")
    assert run.message == {"task": "deploy", "kwargs": {"job": "42", "plugin": "digits@1.0.0", "agent": 1}}


def test_a_run_that_a_stop_ended_before_it_began_is_listed(runs: Runs, redis: FakeRedis) -> None:
    runs.store.remember_stop("42")
    accept(runs, "42")

    assert listed(redis, JobStatus.STOPPED) == ["42"]


def test_a_late_copy_that_starts_nothing_leaves_what_is_kept(runs: Runs, redis: FakeRedis) -> None:
    # Given a run that has ended, with a failed task, and whose keys have expired
    accept(runs, "42")
    runs.store.mark_running("42")
    redis.rpush(failed_tasks_key("42"), 7)
    end(runs, JobStatus.FAILED, "42")
    redis.delete(*redis.keys("synapse:jobs:*"))

    # When its message comes once more, and the job has ended at the backend
    accept(runs, "42")
    runs.store.mark_reported("42")
    runs.store.finish("42", End(JobStatus.FAILED, {}))

    # Then it can be retried still
    assert listed(redis, JobStatus.FAILED) == ["42"]
    assert EndedRuns(redis).failed_tasks("42", 0, 10) == [7]


def test_another_run_of_the_job_takes_the_place_of_the_first(runs: Runs, redis: FakeRedis) -> None:
    # Given a run that has ended, with a failed task, and whose keys have expired
    accept(runs, "42")
    redis.rpush(failed_tasks_key("42"), 7)
    end(runs, JobStatus.FAILED, "42")
    redis.delete(*redis.keys("synapse:jobs:*"))

    # When another one of the same job ends before it was RUNNING
    end(runs, JobStatus.STOPPED, "42")

    # Then nothing of the first is left
    assert (listed(redis, JobStatus.FAILED), listed(redis)) == ([], ["42"])
    assert redis.zscore(ended_runs_key(JobStatus.FAILED), "42") is None
    assert EndedRuns(redis).count_failed_tasks("42") == 0


def test_a_job_that_had_ended_at_the_backend_is_not_listed(runs: Runs, redis: FakeRedis) -> None:
    # Given a job whose message comes when it has ended at the backend, so that nothing of it runs
    accept(runs, "42")
    runs.store.mark_reported("42")
    runs.store.finish("42", End(JobStatus.SUCCEEDED, {}))

    assert listed(redis) == []


def test_only_the_first_end_counts(runs: Runs, redis: FakeRedis) -> None:
    end(runs, JobStatus.SUCCEEDED, "42")
    runs.finish("42", End(JobStatus.FAILED, {"error": "late"}))

    assert listed(redis, JobStatus.FAILED) == []
    assert listed(redis, JobStatus.SUCCEEDED) == ["42"]


def test_runs_that_ended_at_one_time_fill_several_pages(
    runs: Runs, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    # Given more runs that one call ended than fit on two pages, and others before and after
    monkeypatch.setattr(ended_runs, "PAGE", 3)
    end(runs, JobStatus.FAILED, "first")
    clock.forward(1)
    jobs = [str(number) for number in range(10)]
    end(runs, JobStatus.FAILED, *jobs)
    redis.zadd(ended_runs_key(), dict.fromkeys(jobs, clock.time()))
    clock.forward(1)
    end(runs, JobStatus.FAILED, "last")

    # Then each is listed once
    assert listed(redis) == ["last", *sorted(jobs, reverse=True), "first"]


def test_a_list_reads_no_more_than_is_taken(runs: Runs, redis: FakeRedis) -> None:
    # Given more runs than fit on a page
    end(runs, JobStatus.FAILED, *(str(number) for number in range(3 * ended_runs.PAGE)))
    read: list[str] = []

    class Reading(EndedRuns):
        def _read(self, jobs: list[str], status: JobStatus | None) -> object:  # type: ignore[override]
            read.extend(jobs)
            return super()._read(jobs, status)

    # When one is taken
    next(Reading(redis).newest())

    # Then one page was read
    assert len(read) == ended_runs.PAGE


def test_a_page_begins_where_the_one_before_it_ended(
    runs: Runs, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    # Given runs on three pages, of which four ended at one time
    monkeypatch.setattr(ended_runs, "PAGE", 3)
    end(runs, JobStatus.FAILED, "a")
    at_once = ["b", "c", "d", "e"]
    end(runs, JobStatus.FAILED, *at_once)
    redis.zadd(ended_runs_key(), dict.fromkeys(at_once, clock.time()))
    clock.forward(1)
    end(runs, JobStatus.FAILED, "f", "g")

    # When each page is asked for with the text that the one before it gave, and a run ends meanwhile
    found, position = [], ""
    while position is not None and len(found) < 10:
        parsed = Position.parse(position) if position else None
        page, following = EndedRuns(redis).page(position=parsed)
        end(runs, JobStatus.FAILED, f"late-{len(found)}")
        found += [run.job for run in page]
        position = str(following) if following else None

    # Then each run is there once, and none that ended after the first page was read
    assert found == ["g", "f", "e", "d", "c", "b", "a"]


def test_a_page_in_the_middle_costs_no_more_than_the_first(
    runs: Runs, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given as many ended runs as fit on five pages
    monkeypatch.setattr(ended_runs, "PAGE", 3)
    end(runs, JobStatus.FAILED, *(str(number) for number in range(15)))
    _, second = EndedRuns(redis).page()
    _, third = EndedRuns(redis).page(position=second)
    calls: list[object] = []
    read: list[str] = []

    class Reading(EndedRuns):
        def _read(self, jobs: list[str], status: JobStatus | None) -> object:  # type: ignore[override]
            read.extend(jobs)
            return super()._read(jobs, status)

    execute = fakeredis.FakeRedis.execute_command

    def count(self: FakeRedis, *arguments: object, **options: object) -> object:
        calls.append(arguments[0])
        return execute(self, *arguments, **options)

    monkeypatch.setattr(fakeredis.FakeRedis, "execute_command", count)

    # When the third one is read
    Reading(redis).page(position=third)

    # Then the index was asked once, and the records of that page alone were read
    assert (calls, len(read)) == (["ZRANGE"], 3)


@pytest.mark.parametrize("text", ["", "nan:0", "inf:1", "1.5", "1.5:-1", "1:1", "-1.5:0", "1e9:0", "1.5:x"])
def test_no_position_is_read_from_other_texts(text: str) -> None:
    with pytest.raises(ValueError):
        Position.parse(text)


def test_what_no_release_writes_hides_no_other_run(runs: Runs, redis: FakeRedis) -> None:
    end(runs, JobStatus.FAILED, "0", "1", "2", "3", "4")
    redis.set(ended_run_key("0"), '{"status": "FAILED", "failed": "many"}')
    redis.set(ended_run_key("1"), "rubbish")
    redis.set(ended_run_key("2"), "[]")
    redis.delete(ended_run_key("3"))

    assert listed(redis) == ["4"]


def test_an_end_counts_where_it_cannot_be_kept(runs: Runs, redis: FakeRedis) -> None:
    # Given a key of another type in place of the index
    redis.set(ended_runs_key(), "rubbish")

    # When a run ends
    end(runs, JobStatus.FAILED, "42")

    # Then it has ended, and that is to be reported
    assert runs.store.load("42").end == End(JobStatus.FAILED, {"error": "no"})
    assert redis.zscore("synapse:outbox", "42") is not None


def test_a_message_is_accepted_where_its_end_cannot_be_kept(runs: Runs, redis: FakeRedis) -> None:
    # Given a key of another type in place of the index, and a stop that came before the message
    redis.set(ended_runs_key(), "rubbish")
    runs.store.remember_stop("42")

    # When the message comes
    accept(runs, "42")

    # Then its run has ended
    assert runs.store.has_ended("42")


def test_maintenance_forgets_what_ended_long_ago(
    services: FakeServices, redis: FakeRedis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given runs that ended more than a week ago, more than are forgotten at once, and later ones
    monkeypatch.setattr(maintenance, "services", lambda: services)
    monkeypatch.setattr(redis, "memory_usage", lambda _key: 0)
    services.settings = SimpleNamespace(
        worker_ended_logs_max_mb=1,
        worker_ended_logs_max_age_seconds=WEEK,
        worker_dead_letters_max_mb=1,
        worker_dead_letters_max_age_seconds=WEEK,
        worker_ended_runs_max_mb=1,
        worker_ended_runs_max_age_seconds=WEEK,
    )
    monkeypatch.setattr(ended_runs, "FORGOTTEN_AT_ONCE", 3)
    old = [str(number) for number in range(8)]
    end(services.runs, JobStatus.FAILED, *old)
    redis.rpush(failed_tasks_key("1"), 5)
    clock.forward(WEEK - 60)
    end(services.runs, JobStatus.SUCCEEDED, "young")
    clock.forward(120)

    # When maintenance removes what is old
    maintenance.remove_old()

    # Then nothing is left of them, and the later ones are kept
    assert listed(redis) == ["young"]
    assert redis.zcard(ended_runs_key("FAILED")) == 0
    assert sorted(redis.keys("synapse:ended*")) == [
        "synapse:ended",
        "synapse:ended:SUCCEEDED",
        "synapse:ended:sizes",
        "synapse:ended:{young}",
    ]


def test_what_is_kept_expires_where_nobody_forgets_it(
    redis: FakeRedis, publisher: RecordingPublisher, clock: Clock
) -> None:
    # Given runs that ended in turn, with a failed task, and one that was stopped before it began
    runs = Runs(redis, publisher, Timing(60), ended_runs_seconds=3600)
    for job, status in (("1", JobStatus.FAILED), ("2", JobStatus.SUCCEEDED)):
        accept(runs, job)
        redis.rpush(failed_tasks_key(job), 5)
        end(runs, status, job)
        clock.forward(60)
    runs.store.remember_stop("3")
    accept(runs, "3")
    EndedRuns(redis).trim(MB, 3600)

    # When a day has passed since they were to be forgotten, and no worker is left that does it
    clock.forward(3600 + 24 * 60 * 60 - 30)

    # Then what was kept of the first ones is gone, and the others are listed still
    assert listed(redis) == ["3"]
    assert redis.exists(ended_run_key("1"), failed_tasks_key("1"), failed_tasks_key("2")) == 0
    clock.forward(60)
    assert sorted(redis.keys("synapse:ended*")) == [
        "synapse:ended",
        "synapse:ended:FAILED",
        "synapse:ended:STOPPED",
        "synapse:ended:SUCCEEDED",
    ], "the lists alone, which an older release fills as well"


def test_the_oldest_are_forgotten_when_all_take_too_much(
    runs: Runs, redis: FakeRedis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given ended runs, one of them with many failed tasks, of which several calls forget what is too much
    monkeypatch.setattr(ended_runs, "FORGOTTEN_AT_ONCE", 2)
    for job in "1234567":
        accept(runs, job)
        if job == "6":
            redis.rpush(failed_tasks_key(job), *range(1000))
        runs.finish(job, End(JobStatus.FAILED, {}))
        clock.forward(1)
    size_of_one = int(redis.hget(SIZES, "1") or 0)

    # When no more than the three newest may be kept
    EndedRuns(redis).trim(3 * size_of_one + 6 * 1000, WEEK)

    # Then these are, and those are forgotten whole
    assert listed(redis) == ["7", "6", "5"]
    assert sorted(redis.hkeys(SIZES)) == ["5", "6", "7", ":total"]
    assert redis.hget(SIZES, ":total") == str(3 * size_of_one + 6 * 1000)
    assert redis.zcard(ended_runs_key(JobStatus.FAILED)) == 3


def test_sizes_that_an_older_release_leaves_count_no_more(runs: Runs, redis: FakeRedis) -> None:
    # Given runs of which a worker of an older release has forgotten all but one, and left their sizes
    end(runs, JobStatus.FAILED, *(str(number) for number in range(5)))
    redis.zrem(ended_runs_key(), *(str(number) for number in range(4)))

    # When there is room for two
    EndedRuns(redis).trim(2 * int(redis.hget(SIZES, "1") or 0), WEEK)

    # Then the one that is kept stays
    assert listed(redis) == ["4"]


def test_a_new_run_of_a_job_takes_the_place_of_the_ended_one(runs: Runs, redis: FakeRedis) -> None:
    # Given an ended run with a failed task, whose own keys have expired
    end(runs, JobStatus.FAILED, "42")
    redis.rpush(failed_tasks_key("42"), 5)
    redis.delete(*redis.keys("synapse:jobs:*"))

    # When a message for the job comes again, and its run begins
    accept(runs, "42")
    runs.store.mark_running("42")

    # Then nothing of the earlier run is mixed with the new one
    assert redis.keys("synapse:ended*") == []
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    assert listed(redis) == ["42"]


def test_an_ended_run_is_read_without_a_message() -> None:
    run = EndedRun.from_json("42", '{"status": "FAILED"}')

    assert run is not None
    assert (run.arguments, run.project) == ({}, None)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"status": "FAILED", "failed": "x"}', "[" * 100_000])
def test_what_no_release_writes_is_no_ended_run(text: str | None) -> None:
    assert EndedRun.from_json("42", text) is None


def test_the_index_is_written_by_the_script_that_ends_the_run(
    runs: Runs, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an accepted run
    accept(runs, "42")
    calls: list[object] = []
    execute = fakeredis.FakeRedis.execute_command

    def count(self: FakeRedis, *arguments: object, **options: object) -> object:
        calls.append(arguments[0])
        return execute(self, *arguments, **options)

    # When its end is written
    runs.store.finish("1", End(JobStatus.SUCCEEDED, {}))  # the script is loaded
    monkeypatch.setattr(fakeredis.FakeRedis, "execute_command", count)
    runs.store.finish("42", End(JobStatus.SUCCEEDED, {}))

    # Then that is one call
    assert calls == ["EVALSHA"]
    assert redis.zcard(ended_runs_key()) == 1
