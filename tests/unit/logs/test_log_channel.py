"""One numbering, kept and sent; who may write; the end once and last."""

from fakeredis import FakeRedis

from shared.channels import RETENTION_SECONDS, logs_channel, logs_history
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.unit.logs.logs_helpers import Log
from worker.runs.events import log_args, log_keys, log_state_key
from worker.runs.model import End
from worker.runs.runs import Runs
from worker.runs.scripts import run_scripts

RAY = "raysubmit_1"


def test_messages_of_a_run_and_lines_of_logs_share_one_numbering(run: Runs, log: Log) -> None:
    # Given a log that is followed for a run
    log.book(RAY)
    log.begin(RAY, "1")

    # When both have something to say
    run.events.message("42", "first")
    log.add(RAY, "1", 0, "second", "third")
    run.events.message("42", "fourth", level="warning")

    # Then listeners and late comers get the same, numbered from 1
    shown = [(e["seq"], e["source"], e["level"], e["line"]) for e in log.history()]
    assert shown == [
        (1, "run", "info", "first"),
        (2, RAY, "info", "second"),
        (3, RAY, "info", "third"),
        (4, "run", "warning", "fourth"),
    ]
    assert log.heard() == log.history()


def test_message_of_several_lines_is_several_lines(run: Runs, log: Log) -> None:
    run.events.message("42", "Traceback\n  한국어 \ud800 end")

    assert log.lines()[0] == "Traceback"
    assert log.lines()[1].startswith("  한국어 ")


def test_secret_in_a_message_does_not_reach_the_log(run: Runs, log: Log) -> None:
    run.events.message("42", "Authorization: Token 0123456789abcdef")

    assert "0123456789abcdef" not in str(log.history())


def test_message_of_an_unknown_run_leaves_nothing(runs: Runs, log: Log, redis: FakeRedis) -> None:
    runs.events.log.append("42", "hello", "info")

    assert not redis.exists(log_state_key("42"))
    assert log.history() == []


def test_log_ends_with_the_run_where_nothing_else_is_followed(run: Runs, log: Log) -> None:
    run.events.message("42", "hello")
    run.finish("42", End(JobStatus.FAILED, {"error": "out of memory"}))
    run.ensure_end_reported("42")

    assert log.lines() == ["hello", "FAILED out of memory"]
    assert log.end()["reason"] == "ended"
    assert log.heard()[-1] == log.end()


def test_log_of_a_stopped_run_ends_with_that_reason(run: Runs, log: Log) -> None:
    run.finish("42", End(JobStatus.STOPPED, {"error": "stopped"}))

    assert log.end()["reason"] == "stopped"


def test_end_waits_for_every_followed_log_and_the_run(run: Runs, log: Log) -> None:
    # Given two logs that are followed for a run
    for claim, name in enumerate(("a", "b"), 1):
        log.book(name)
        log.begin(name, str(claim))

    # When one ends, then the run, then the other
    log.close("a", "1")
    assert not log.is_over()
    run.finish("42", End(JobStatus.SUCCEEDED, {}))
    assert not log.is_over()
    log.add("b", "2", 0, "still here")
    log.close("b", "2")

    # Then the end comes last
    assert log.end()["reason"] == "ended"


def test_end_says_the_reason_that_matters_most(runs: Runs, log: Log) -> None:
    for claim, name in enumerate("abc", 1):
        log.book(name)
        log.begin(name, str(claim))
    for claim, (name, reason) in enumerate([("a", "stopped"), ("b", "limit"), ("c", "ended")], 1):
        log.close(name, str(claim), reason)

    assert log.end()["reason"] == "limit"


def test_message_after_the_end_goes_nowhere(run: Runs, log: Log) -> None:
    run.finish("42", End(JobStatus.SUCCEEDED, {}))
    run.events.message("42", "too late")

    assert "too late" not in log.lines()
    assert log.end()["seq"] == 2


def test_log_that_is_asked_for_after_the_end_is_still_followed(run: Runs, log: Log) -> None:
    # Given a log that is over
    run.finish("42", End(JobStatus.SUCCEEDED, {}))
    assert log.is_over()

    # When another one is booked and has lines
    assert log.book(RAY)
    log.begin(RAY, "1")
    log.add(RAY, "1", 0, "late")
    assert not log.is_over()
    log.close(RAY, "1")

    # Then the end stands once, and last
    assert log.lines()[-1] == "late"
    assert log.end()["reason"] == "ended"


def test_log_that_was_over_before_its_run_came_goes_on_with_the_run(runs: Runs, log: Log) -> None:
    # Given a log that was followed to its end for a job without a run
    log.book(RAY)
    log.begin(RAY, "1")
    log.add(RAY, "1", 0, "early")
    log.close(RAY, "1")
    assert log.is_over()

    # When the run's own message comes after all
    runs.redis.hset("synapse:jobs:{42}:run", mapping={"message": "{}", "queue": "deploy", "position": 0})
    runs.events.log.append("42", "a run", "info")

    # Then it is in the log, which is not over
    assert log.lines() == ["early", "a run"]
    assert not log.is_over()


def test_relay_that_lost_its_claim_can_publish_nothing(log: Log) -> None:
    log.book(RAY)
    log.begin(RAY, "1")
    log.add(RAY, "1", 0, "one")
    assert log.begin(RAY, "2") == [1, '{"agent": null, "protocol": "stream"}']

    assert log.add(RAY, "1", 1, "two") == -1
    assert log.close(RAY, "1") == 0
    assert log.begin(RAY, "1") == []
    assert log.lines() == ["one"]


def test_lines_sent_again_are_taken_once(log: Log) -> None:
    log.book(RAY)
    log.begin(RAY, "1")

    assert log.add(RAY, "1", 0, "one", "two") == 2
    assert log.add(RAY, "1", 0, "one", "two") == 2
    assert log.lines() == ["one", "two"]


def test_lines_sent_again_with_more_behind_them_are_taken_once(log: Log) -> None:
    log.book(RAY)
    log.begin(RAY, "1")

    assert log.add(RAY, "1", 0, "one", "two") == 2
    assert log.add(RAY, "1", 0, "one", "two", "three") == 3
    assert log.lines() == ["one", "two", "three"]


def test_lines_beyond_the_limit_of_the_job_are_not_taken(log: Log) -> None:
    for claim, name in enumerate(("a", "b"), 1):
        log.book(name)
        log.begin(name, str(claim))

    assert log.add("a", "1", 0, "1", "2", most=3) == 2
    assert log.add("b", "2", 0, "3", "4", most=3) == 1
    assert log.add("b", "2", 0, "3", "4", most=3) == 1
    assert log.add("a", "1", 2, "x", most=3) == 0


def test_bytes_beyond_the_limit_of_the_job_are_not_taken(log: Log) -> None:
    log.book(RAY)
    log.begin(RAY, "1")

    assert log.add(RAY, "1", 0, "가나다", "abc", size=12) == 1


def test_second_booking_of_the_same_log_changes_nothing(log: Log, redis: FakeRedis) -> None:
    assert log.book(RAY)
    assert log.book(RAY)
    log.begin(RAY, "1")
    log.close(RAY, "1")

    assert not log.book(RAY)
    assert log.end()["reason"] == "ended"


def test_log_that_could_not_be_reached_may_be_asked_for_again(log: Log) -> None:
    log.book(RAY)
    log.begin(RAY, "1")
    log.add(RAY, "1", 0, "one")
    log.close(RAY, "1", "unreachable", "It is gone.")
    assert log.end()["reason"] == "unreachable"

    assert log.book(RAY)
    assert log.begin(RAY, "2")[0] == 1
    log.add(RAY, "2", 1, "two")
    log.close(RAY, "2")

    assert log.lines() == ["one", "It is gone.", "two"]
    assert log.end()["reason"] == "ended"


def test_log_of_a_job_without_a_run_expires_a_day_after_its_end(log: Log, redis: FakeRedis) -> None:
    log.book(RAY)
    log.begin(RAY, "1")
    log.add(RAY, "1", 0, "one")
    assert {redis.ttl(key) for key in redis.keys("synapse:jobs:*")} == {-1}

    log.close(RAY, "1")

    assert {redis.ttl(key) for key in redis.keys("synapse:jobs:*")} == {RETENTION_SECONDS}


def test_log_that_outlives_its_reported_run_does_not_expire_before_its_end(
    run: Runs, log: Log, redis: FakeRedis
) -> None:
    log.book(RAY)
    log.begin(RAY, "1")
    run.finish("42", End(JobStatus.SUCCEEDED, {}))
    run.store.mark_reported("42")
    assert redis.ttl(log_state_key("42")) == -1

    log.add(RAY, "1", 0, "one")
    log.close(RAY, "1")

    assert {redis.ttl(key) for key in redis.keys("synapse:jobs:*")} == {RETENTION_SECONDS}


def test_lines_of_many_logs_go_in_by_one_call_and_a_broken_one_does_not_hold_up_the_others(
    redis: FakeRedis,
) -> None:
    # Given logs of several jobs, one of whose state is not what it should be, and one that another relay has
    logs = [Log(redis, name) for name in ("a", "b", "c")]
    for log, claim in zip(logs, "121", strict=True):
        log.book(RAY)
        log.begin(RAY, claim)
    redis.delete(logs_history("a"))
    redis.set(logs_history("a"), "no stream")

    # When one call brings lines of all
    keys = [key for log in logs for key in log_keys(log.job)]
    told = [part for log in logs for part in (logs_channel(log.job), RAY, 1, 0, 2, "one", "two")]
    relay = log_args("relay", "", "now", "info", 1000, 10**6, *told)
    answers = run_scripts(redis).run("log", keys, *relay)

    # Then each log has its own answer
    assert "WRONGTYPE" in answers[0]
    assert answers[1:] == [-1, 2]
    assert logs[2].lines() == ["one", "two"]
    assert [entry["line"] for entry in logs[2].heard()] == ["one", "two"]


def test_log_that_is_gone_on_with_by_a_later_run_lives_as_long_as_that(
    runs: Runs, log: Log, redis: FakeRedis
) -> None:
    # Given a followed log that was over before the run of its job began, and so expires
    log.book(RAY)
    log.begin(RAY, "1")
    log.close(RAY, "1")
    assert redis.ttl(log_state_key("42")) == RETENTION_SECONDS

    # When the run says something
    message = DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")
    runs.events.log.append("42", "it begins", "info")

    # Then the log stays until that is over, too
    assert (redis.ttl(log_state_key("42")), redis.ttl(logs_history("42"))) == (-1, -1)
