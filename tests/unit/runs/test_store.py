"""A run is created once, ends once, and expires a day after its end was reported."""

import json
from collections.abc import Callable

import pytest
from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import InProcessWorker
from tests.unit.runs.example_workflow import FIRST, report
from worker.runs.keys import RunField, lock_key, messages_key, progress_key, run_key, stop_key
from worker.runs.model import Acceptance, ClaimStatus, DamagedRunError, End, NewerRunError, Run
from worker.runs.reports.reporter import stop
from worker.runs.runs import Runs
from worker.testing import FakeBackend

DAY = 86_400


Eventually = Callable[[Callable[[], object]], None]


def test_message_is_accepted_once(runs: Runs, deploy: DeployMessage) -> None:
    assert [runs.store.accept(deploy, "deploy") for _ in range(3)] == [
        Acceptance.ACCEPTED,
        Acceptance.KNOWN,
        Acceptance.KNOWN,
    ]


def test_message_in_korean_takes_no_more_than_its_characters(runs: Runs, redis: FakeRedis) -> None:
    name = "가을 사진 첫 번째 자동 라벨링"
    params = {"name": name, "project": 1, "agent": 1, "target_specification_name": "label_1"}
    message = ToTaskMessage.model_validate({"job": "43", "plugin": "digits@1.0.0", "params": params})

    runs.store.accept(message, "to_task")

    assert name in redis.hget(run_key("43"), RunField.MESSAGE)
    assert runs.store.load("43").message == message


def test_second_message_changes_nothing(runs: Runs, run: Run) -> None:
    other = DeployMessage.model_validate({"job": "42", "plugin": "other@2", "agent": 2})

    runs.store.accept(other, "elsewhere")

    assert runs.store.load("42") == run


def accepted_by_a_newer_worker(redis: FakeRedis, job: str) -> None:
    """Add a field to the run's message that this release does not know."""
    message = json.loads(redis.hget(run_key(job), RunField.MESSAGE))
    message["kwargs"]["dry_run"] = True
    redis.hset(run_key(job), RunField.MESSAGE, json.dumps(message))


def test_run_of_a_newer_release_is_not_read(runs: Runs, run: Run, redis: FakeRedis) -> None:
    accepted_by_a_newer_worker(redis, "42")
    with pytest.raises(NewerRunError, match="newer release"):
        runs.store.load("42")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (RunField.MESSAGE, "rubbish"),
        (RunField.MESSAGE, "[]"),
        (RunField.MESSAGE, "[" * 100_000),
        (RunField.MESSAGE, None),
        (RunField.QUEUE, None),
        (RunField.POSITION, "first"),
        (RunField.ENDED, "{}"),
        (RunField.MESSAGE, b"\xff"),
        (RunField.STEP, b"\xff"),
        (RunField.QUEUE, b"deploy\xff"),
    ],
)
def test_damaged_record_is_told_apart_from_a_newer_one(
    runs: Runs, run: Run, redis: FakeRedis, field: str, text: str | bytes | None
) -> None:
    redis.hdel(run_key("42"), field) if text is None else redis.hset(run_key("42"), field, text)

    with pytest.raises(DamagedRunError, match="damaged"):
        runs.store.load("42")


def test_bytes_in_a_name_are_damage_of_the_run(runs: Runs, run: Run, redis: FakeRedis) -> None:
    # Given a message within which a text is no UTF-8
    stored = redis.hget(run_key("42"), RunField.MESSAGE)
    redis.hset(run_key("42"), RunField.MESSAGE, stored.replace("digits", "digits\udcff"))

    # Then that is no run of a newer release
    with pytest.raises(DamagedRunError):
        runs.store.load("42")


@pytest.mark.parametrize("updated", [b"\xff", "yesterday", "nan", "inf"])
def test_a_damaged_time_counts_as_long_ago(
    runs: Runs, run: Run, redis: FakeRedis, updated: str | bytes
) -> None:
    redis.hset(job_key("42"), "updated", updated)

    assert runs.store.seconds_since_change("42") > DAY


def test_step_of_a_newer_run_leaves_its_lock_free(runs: Runs, run: Run, redis: FakeRedis) -> None:
    accepted_by_a_newer_worker(redis, "42")
    with pytest.raises(NewerRunError):
        runs.store.claim_step("42", FIRST, "", "token", 30, 0, False)
    assert not redis.exists(lock_key("42", FIRST.name))


def test_message_is_read_back_as_it_came(runs: Runs, run: Run, deploy: DeployMessage) -> None:
    assert run.message == deploy
    assert run.message.model_fields_set == deploy.model_fields_set


def test_ended_job_is_known(runs: Runs, run: Run, deploy: DeployMessage) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {}))

    assert runs.store.accept(deploy, "deploy") is Acceptance.KNOWN


def test_stop_before_its_message_ends_the_run_at_once(runs: Runs, deploy: DeployMessage) -> None:
    runs.store.remember_stop("42")

    assert runs.store.accept(deploy, "deploy") is Acceptance.STOPPED
    assert runs.store.load("42").end == End(JobStatus.STOPPED, {"error": "stopped"})
    assert runs.redis.hget(job_key("42"), "status") == "STOPPED"


def test_stop_is_remembered_for_a_day(runs: Runs, redis: FakeRedis) -> None:
    runs.store.remember_stop("42")

    assert DAY - 5 < redis.ttl(stop_key("42")) <= DAY


def test_late_start_does_not_undo_a_stop(runs: Runs, run: Run, redis: FakeRedis) -> None:
    stop("42", runs)

    runs.mark_running(run)

    assert redis.hget(job_key("42"), "status") == "STOPPED"


def test_late_writes_leave_no_key_without_expiry(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given steps that were reported, right before the end was reported, that the run lives
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    report("42", runs, backend)
    monkeypatch.setattr(redis, "hexists", lambda *_: False)
    monkeypatch.setattr(runs.store, "has_ended", lambda _: False)

    runs.events.message("42", "late")
    runs.set_metrics(run, "deploy", success=1)
    runs.events.requeue_messages("42", [{"event": "message"}])

    assert not redis.exists(messages_key("42"), progress_key("42"))
    assert {key: redis.ttl(key) for key in redis.keys("synapse:jobs:*") if redis.ttl(key) < 0} == {}


def test_keys_expire_a_day_after_the_end_was_reported(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    runs.set_progress(run, "deploy", 10)
    redis.set("synapse:jobs:{42}:ledger", 1)
    runs.store.expire_with_run("42", "synapse:jobs:{42}:ledger")
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    assert [redis.ttl(key) for key in redis.keys("synapse:jobs:*")] == [-1] * len(
        redis.keys("synapse:jobs:*")
    )

    report("42", runs, backend)

    ttls = {key: redis.ttl(key) for key in redis.keys("synapse:jobs:*")}
    assert len(ttls) >= 5
    assert all(DAY - 5 < ttl <= DAY for ttl in ttls.values()), ttls


def test_end_is_written_once_and_the_first_wins(runs: Runs, run: Run) -> None:
    assert runs.finish("42", End(JobStatus.STOPPED, {"error": "stopped"}))
    assert not runs.finish("42", End(JobStatus.SUCCEEDED, {}))

    end = runs.store.load("42").end
    assert end == End(JobStatus.STOPPED, {"error": "stopped"})


def test_client_that_asks_twice_for_a_lock_has_it(runs: Runs, run: Run) -> None:
    asked = [runs.store.claim_step("42", FIRST, "", "me", 5, 0, False) for _ in range(2)]

    assert [begun.status for begun in asked] == [ClaimStatus.CLAIMED, ClaimStatus.CLAIMED]


def test_run_key_is_private_and_the_record_public(
    worker: InProcessWorker, run: Run, redis: FakeRedis
) -> None:
    assert set(redis.hgetall(job_key("42"))) == {
        "action", "plugin", "status", "step", "overall", "success", "failed", "total", "started", "updated",
        "error",
    }  # fmt: skip
    assert redis.exists(run_key("42"))


def test_languages_are_those_of_the_runs_that_are_there(runs: Runs) -> None:
    for job, language in (("1", "ko"), ("2", None)):
        fields = {} if language is None else {"language": language}
        message = DeployMessage.model_validate({"job": job, "plugin": "p@1.0.0", "agent": 1, **fields})
        runs.store.accept(message, "deploy")
    assert runs.store.languages(["1", "2", "gone"]) == {"1": "ko", "2": "en"}
