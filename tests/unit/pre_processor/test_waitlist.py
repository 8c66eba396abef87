"""The waiting list in Redis: claims, wake-ups, names and keys."""

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.channels import job_key, logs_history
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.pre_processor.waitlist_harness import NAME, FakeServices, WaitlistHarness
from worker.pre_processor.waitlist import (
    AWAIT_READY,
    DISPATCH,
    FETCH_TASKS,
    PRE_PROCESSOR,
    PreProcessorRun,
    WaitlistName,
    recover_waitlist,
    wake,
)
from worker.runs.keys import BEGUN_PREFIX, heartbeats_key, run_key
from worker.runs.model import Suspend
from worker.runs.reports.reporter import stop
from worker.testing import FakeBackend


def test_a_deployment_without_a_dispatch_sets_no_job(harness: WaitlistHarness) -> None:
    assert not harness.waitlist.set_job("101")
    harness.detect("1")
    harness.waitlist.join("1", 60)
    assert not harness.waitlist.set_job("101"), "the dispatch is not sent yet"


def test_an_expired_claim_is_taken_over(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock, sender: RecordingPublisher
) -> None:
    harness.detect("1")
    dead = harness.waitlist.join("1", 60)
    stop("1", harness.runs)
    clock.forward(21)
    harness.wait("2")
    assert len(backend.dispatches) == 1
    assert dead.claim is not None
    assert not harness.waitlist.mark_sent(dead.claim, {})


def test_an_expired_claim_lets_a_waiting_run_dispatch(
    harness: WaitlistHarness, clock: Clock, sender: RecordingPublisher, backend: FakeBackend
) -> None:
    # Given a run that claimed the dispatch, whose worker died before it sent anything
    harness.detect("1")
    harness.waitlist.join("1", 60)
    sender.published.clear()
    harness.wait("2")
    stop("1", harness.runs)
    clock.forward(21)
    harness.poll(1)
    assert harness.redispatching() == ["2"]
    harness.dispatch("2")
    assert len(backend.dispatches) == 1


def test_a_wake_polls_at_once_and_ends_the_poll_before(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    harness.wait("1")
    following = harness.poll()
    assert following is not None
    backend.add_application()
    assert wake(harness.runs, NAME)
    last = sender.of(AWAIT_READY.name)[-1]
    assert last.countdown == 0
    assert harness.poll() is None
    assert harness.resumed() == ["1"]
    assert harness.poll(following.generation) is None


def test_an_empty_waiting_list_is_not_woken(harness: WaitlistHarness, sender: RecordingPublisher) -> None:
    assert not wake(harness.runs, NAME)
    assert sender.published == []


def test_an_overdue_waiting_list_is_polled_again(
    harness: WaitlistHarness, sender: RecordingPublisher
) -> None:
    harness.wait("1")
    recover_waitlist(NAME.key, harness.runs)
    assert sender.of(AWAIT_READY.name)[-1].kwargs["generation"] == 2
    assert harness.poll(1) is None


def test_a_waiting_list_whose_first_poll_was_lost_is_overdue(
    harness: WaitlistHarness,
    backend: FakeBackend,
    sender: RecordingPublisher,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a run whose worker died before it published the poll, and which was stopped before its redelivery
    harness.detect("1")

    def died(*_: object) -> None:
        raise RedisConnectionError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr("worker.pre_processor.dispatch.schedule_poll", died)
        with pytest.raises(RedisConnectionError):
            harness.dispatch("1")
    stop("1", harness.runs)
    # When another run joins after it, and finds that a poll is scheduled
    harness.detect("2")
    clock.forward(40)
    assert harness.dispatch("2") == Suspend()
    clock.forward(harness.runs.timing.heartbeat_grace_seconds - 39)
    # Then the sweep finds the waiting list overdue, and no later for the run that joined
    assert sender.of(AWAIT_READY.name) == []
    assert NAME.member in harness.runs.heartbeats.overdue()
    recover_waitlist(NAME.key, harness.runs)
    backend.add_application()
    assert harness.poll() is None
    assert harness.resumed() == ["2"]


def test_an_overdue_waiting_list_without_runs_is_dropped(harness: WaitlistHarness, redis: FakeRedis) -> None:
    harness.runs.heartbeats.schedule(NAME.member)
    recover_waitlist(NAME.key, harness.runs)
    assert redis.zscore(heartbeats_key(), NAME.member) is None


@pytest.mark.parametrize("tenant", ["", "acme", "a:b@{c}/ü %"])
def test_a_name_is_parsed_from_its_key(tenant: str) -> None:
    name = WaitlistName(tenant, 3, "digits", "1.0.0+a")
    assert WaitlistName.parse(name.key) == name
    assert "{" not in name.key


def test_the_keys_share_a_slot_and_expire(harness: WaitlistHarness, redis: FakeRedis) -> None:
    harness.wait("1")
    keys = list(redis.keys("synapse:rooms:*"))
    assert len(keys) == 2
    for key in keys:
        assert f"{{{NAME.key}}}" in key
        assert redis.ttl(key) > 0


def test_tenants_have_waiting_lists_of_their_own(
    harness: WaitlistHarness, backend: FakeBackend, services: FakeServices
) -> None:
    harness.wait("1")
    harness.detect("2", tenant="acme")
    harness.dispatch("2")
    assert len(backend.dispatches) == 2


def test_a_run_that_joins_again_is_known_to_have_begun(harness: WaitlistHarness, redis: FakeRedis) -> None:
    # Given a run that waits, of which little is kept
    harness.wait("1")
    assert not [field for field in redis.hkeys(run_key("1")) if field.startswith(BEGUN_PREFIX)]
    seen: list[bool] = []

    # When its step is delivered again
    def look(run: PreProcessorRun) -> Suspend:
        seen.append(run.is_retry)
        return Suspend()

    harness.worker.run_step(DISPATCH, look, job="1", redelivered=True)

    # Then the step looks before it acts
    assert seen == [True]


def test_the_public_record_says_for_what_a_run_waits(harness: WaitlistHarness, redis: FakeRedis) -> None:
    # Given a run that waits, which has no log
    harness.wait("1")
    assert redis.hget(job_key("1"), "waiting_for") == "pre-processor digits@1.0.0"
    assert not redis.exists(logs_history("1"))

    # When it goes on, then it waits no more
    harness.worker.run_step(PRE_PROCESSOR.step(FETCH_TASKS.name, FETCH_TASKS.position), _suspend, job="1")
    assert redis.hget(job_key("1"), "waiting_for") is None


def test_a_stopped_run_waits_for_nothing(harness: WaitlistHarness, redis: FakeRedis) -> None:
    harness.wait("1")
    stop("1", harness.runs)
    assert redis.hget(job_key("1"), "waiting_for") is None


def test_a_long_name_makes_no_large_record(harness: WaitlistHarness, redis: FakeRedis) -> None:
    release = {"code": "d" * 100, "version": "1.0.0", "config": {"code": "d" * 100, "version": "1.0.0"}}
    harness.backend.release = {"id": 7, **release}
    harness.wait("1")
    waiting_for = redis.hget(job_key("1"), "waiting_for")
    assert waiting_for.startswith("pre-processor ddd")
    assert len(waiting_for.encode()) <= 64  # where Redis stores a hash as a list


def _suspend(_: PreProcessorRun) -> Suspend:
    return Suspend()
