"""Acceptance, leases, signs of life and recovery."""

import itertools
import threading
import time
from collections.abc import Callable

from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.runs.runs_helpers import DEPLOY, FIRST, RecordingSender
from worker.runs.heartbeat import Heartbeats
from worker.runs.keys import HEARTBEATS_KEY, polls_key, run_key, stop_key
from worker.runs.locks import Locks
from worker.runs.model import Acceptance, End, Run
from worker.runs.runs import Runs, recover_run

DAY = 86_400
SPREAD = DEPLOY.step("to_task.spread", 20, queue="annotate")

Eventually = Callable[[Callable[[], object]], None]


def test_message_is_accepted_once(runs: Runs, deploy: DeployMessage) -> None:
    assert [runs.store.accept(deploy, "deploy") for _ in range(3)] == [
        Acceptance.ACCEPTED,
        Acceptance.KNOWN,
        Acceptance.KNOWN,
    ]


def test_second_message_changes_nothing(runs: Runs, run: Run) -> None:
    other = DeployMessage.model_validate({"job": "42", "plugin": "other@2", "agent": 2})

    runs.store.accept(other, "elsewhere")

    assert runs.store.load("42") == run


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


# Leases


def test_lease_is_renewed_while_held(redis: FakeRedis, eventually: Eventually) -> None:
    keeper = Locks(redis, 0.6)
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me"):
        redis.pexpire("lock", 60_000)
        eventually(lambda: redis.pttl("lock") <= 600)

    assert not redis.exists("lock")


def test_lease_is_renewed_also_when_it_follows_another_at_once(
    redis: FakeRedis, eventually: Eventually
) -> None:
    keeper = Locks(redis, 0.6)
    for _ in range(200):
        keeper.acquire("lock", "me")
        with keeper.hold("lock", "me"):
            pass
    keeper.acquire("lock", "me")

    with keeper.hold("lock", "me"):
        redis.pexpire("lock", 60_000)
        eventually(lambda: redis.pttl("lock") <= 600)


def test_lease_of_another_is_neither_renewed_nor_released(redis: FakeRedis) -> None:
    keeper = Locks(redis, 10)
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me"):
        redis.set("lock", "another", px=500)

    assert redis.get("lock") == "another"


def test_lease_is_taken_once(redis: FakeRedis) -> None:
    keeper = Locks(redis, 10)

    assert keeper.acquire("lock", "me")
    assert not keeper.acquire("lock", "another")


def test_client_that_asks_twice_holds_the_lease(redis: FakeRedis) -> None:
    keeper = Locks(redis, 10)

    assert keeper.acquire("lock", "me")
    assert keeper.acquire("lock", "me")


def test_no_thread_is_left_when_nothing_is_held(redis: FakeRedis, eventually: Eventually) -> None:
    keeper = Locks(redis, 10)
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me"):
        thread = keeper._thread
        assert thread is not None

    eventually(lambda: not thread.is_alive())
    assert thread not in threading.enumerate()


def test_lock_is_shorter_than_the_visibility_timeout(runs: Runs) -> None:
    assert runs.timing.lock_seconds < runs.timing.visibility_timeout < runs.timing.heartbeat_grace_seconds


# Signs of life


def test_member_is_overdue_after_the_patience(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=70)
    live.schedule("run:42")

    clock.forward(68)
    early = live.overdue()
    clock.forward(4)

    assert (early, live.overdue()) == ([], ["run:42"])


def test_who_is_put_off_is_overdue_later_and_who_has_ended_never(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=70)
    live.schedule("run:42")
    live.extend("run:42", 5)
    live.extend("run:of-the-past", 5)

    clock.forward(72)
    early = live.overdue()
    clock.forward(5)

    assert (early, live.overdue()) == ([], ["run:42"])


def test_overdue_member_is_handed_out_once(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=70)
    live.schedule("run:42")
    clock.forward(72)

    assert [live.overdue(), live.overdue()] == [["run:42"], []]


def test_overdue_member_is_handed_out_later_each_time(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=10)
    live.schedule("run:42")
    start, times = clock.ahead, []
    while len(times) < 9 and clock.ahead < 5000:
        clock.forward(1)
        if live.overdue():
            times.append(clock.ahead - start)

    gaps = [round(after - before, -1) for before, after in itertools.pairwise(times)]
    assert gaps == [20, 40, 80, 160, 320, 640, 640, 640]


def test_sign_of_life_makes_patience_whole_again(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=10)
    live.schedule("run:42")
    for _ in range(4):
        clock.forward(200)
        live.overdue()
    live.schedule("run:42")
    clock.forward(12)
    assert live.overdue() == ["run:42"]
    clock.forward(22)

    assert live.overdue() == ["run:42"]


def test_forgotten_member_is_not_overdue(redis: FakeRedis, clock: Clock) -> None:
    live = Heartbeats(redis, grace_seconds=10)
    live.schedule("run:42")
    live.remove("run:42")
    clock.forward(100)

    assert live.overdue() == []


# Recovery


def test_run_that_never_began_gets_its_first_step(runs: Runs, run: Run, sender: RecordingSender) -> None:
    recover_run("42", runs)

    assert [(sent.name, sent.queue) for sent in sender.sent] == [("deploy.initialize", "deploy")]


def test_run_gets_the_step_at_which_it_stands(runs: Runs, run: Run, sender: RecordingSender) -> None:
    runs.store.claim_step("42", FIRST, "", "me", 5, 0, False)
    runs.generations.advance("42", FIRST.name, 0)

    recover_run("42", runs)

    assert [(sent.name, sent.kwargs) for sent in sender.sent] == [
        ("deploy.first", {"job": "42", "generation": 1})
    ]


def test_step_with_a_queue_of_its_own_is_recovered_there(
    runs: Runs, run: Run, sender: RecordingSender
) -> None:
    runs.store.claim_step("42", SPREAD, "", "me", 5, 0, False)

    recover_run("42", runs)

    assert sender.sent[0].queue == "annotate"


def test_ended_run_gets_its_report(runs: Runs, run: Run, sender: RecordingSender) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {}))

    recover_run("42", runs)

    assert [sent.name for sent in sender.sent] == ["runs.report"]


def test_reports_of_an_ended_run_are_recovered_later_each_time(
    runs: Runs, run: Run, sender: RecordingSender, clock: Clock
) -> None:
    runs.finish("42", End(JobStatus.FAILED, {}))
    for _ in range(60):
        clock.forward(runs.timing.heartbeat_grace_seconds)
        for _member in runs.heartbeats.overdue():
            recover_run("42", runs)

    assert len(sender.of("runs.report")) < 10


def test_reported_run_is_forgotten(runs: Runs, run: Run, sender: RecordingSender, redis: FakeRedis) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {}))
    runs.store.mark_reported("42")
    runs.heartbeats.schedule("run:42")

    recover_run("42", runs)

    assert sender.sent == []
    assert redis.zcard(HEARTBEATS_KEY) == 0


def test_unknown_run_is_forgotten(runs: Runs, redis: FakeRedis, sender: RecordingSender) -> None:
    runs.heartbeats.schedule("run:nobody")

    recover_run("nobody", runs)

    assert redis.zcard(HEARTBEATS_KEY) == 0


def test_generations_of_polls_are_kept_apart_from_what_every_step_reads(
    runs: Runs, run: Run, redis: FakeRedis
) -> None:
    before = redis.hlen(run_key("42"))
    for chunk in range(50):
        runs.generations.advance("42", f"to_task.annotate:{chunk}", 0)
    assert redis.hlen(run_key("42")) == before
    assert runs.generations.newest("42", "to_task.annotate:7") == 1
    runs.store.mark_reported("42")
    assert redis.ttl(polls_key("42")) > 0


def test_work_that_takes_long_is_a_sign_of_life(redis: FakeRedis, eventually: Eventually) -> None:
    keeper, signs = Locks(redis, seconds=0.3), []
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me", lambda: signs.append(1)):
        eventually(lambda: len(signs) > 1)
        redis.set("lock", "another", px=300)  # lost: whoever has it gives the signs
        before = len(signs)
        time.sleep(0.25)
    assert len(signs) <= before + 1
