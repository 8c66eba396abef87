"""A tenant has so many chunks and runs at once; what waits goes on when a slot is free, whoever had it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher, celery_request
from tests.unit.conftest import Clock
from tests.unit.runs.example_workflow import VISIBILITY_TIMEOUT
from worker.runs.heartbeat import run_member
from worker.runs.keys import RunField, run_key
from worker.runs.model import End, Outcome, Reschedule, Step, StoredRun, Suspend
from worker.runs.runs import Runs, Timing
from worker.runs.shares.slots import Share, slots_key, tenants_key
from worker.runs.shares.tenants import OTHER_BROKER_SECONDS, ShareLimits
from worker.runs.store import CollectedMessage
from worker.to_task import tasks
from worker.workflow import task as workflow_task
from worker.workflow.delivery import SEPARATED_HEADER, WAITED_HEADER

ANNOTATE = Step("to_task.annotate", position=60, queue="annotate", has_parts=True)
INITIALIZE = Step("to_task.initialize", position=10)
DONE = End(JobStatus.SUCCEEDED, {})


class QueuePublisher(RecordingPublisher):
    """Puts messages into lists of the Redis of the runs, by way of a script when they are collected."""

    def __init__(self, redis: FakeRedis) -> None:
        super().__init__()
        self._redis, self.shares_redis = redis, True
        self._collected: list[CollectedMessage] | None = None

    def publish(
        self,
        step: Step,
        queue: str,
        kwargs: dict[str, Any],
        countdown: float = 0.0,
        priority: int = 0,
        headers: dict[str, object] | None = None,
    ) -> None:
        text = json.dumps({"task": step.name, "priority": priority, "headers": headers, **kwargs})
        if self._collected is None:
            self._redis.lpush(queue, text)
        else:
            self._collected.append(CollectedMessage((queue, ""), "LPUSH", text))

    @contextmanager
    def collecting(self) -> Iterator[list[CollectedMessage] | None]:
        self._collected = []
        yield self._collected
        self._collected = None


class Shared:
    """Chunks and runs of tenants."""

    def __init__(self, redis: FakeRedis, **limits: Any) -> None:
        self.redis = redis
        publisher = QueuePublisher(redis)
        self.runs = Runs(redis, publisher, Timing(VISIBILITY_TIMEOUT), share_limits=ShareLimits(**limits))

    def run(self, job: str, tenant: str | None = None, priority: int = 0) -> StoredRun:
        params = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "s"}
        fields = {"job": job, "plugin": "digits@1.0.0", "params": params, "tenant": tenant}
        self.runs.store.accept(ToTaskMessage.model_validate(fields), "to_task", priority)
        return self.runs.store.load(job)

    def begin_chunk(self, run: StoredRun, chunk: int) -> tuple[Outcome | None, StoredRun]:
        """Deliver a chunk's message: whether it waits, and the run with the lease of the delivery."""
        token = self.runs.locks.new_token()
        claim = self.runs.store.claim_step(run.job, ANNOTATE, str(chunk), token, 30, 0, False)
        assert claim.run is not None
        kwargs = {"chunk": chunk, "generation": 0}
        outcome = self.runs.shares.take_chunk(claim.run, ANNOTATE, kwargs)
        if outcome is not None:
            self.release(claim.run)
        return outcome, claim.run

    def begin_chunks(self, run: StoredRun, *chunks: int) -> list[StoredRun]:
        """Deliver chunks, none of which has to wait."""
        begun = [self.begin_chunk(run, chunk) for chunk in chunks]
        assert [outcome for outcome, _ in begun] == [None] * len(chunks)
        return [held for _, held in begun]

    def release(self, held: StoredRun) -> None:
        assert held.lease is not None
        self.runs.locks.release(held.lease)

    def end_chunk(self, held: StoredRun) -> None:
        self.runs.shares.free_chunk(held)
        self.release(held)

    def published(self, queue: str = "annotate") -> list[tuple[str, int]]:
        """Job and chunk of the messages in the queue, the oldest first."""
        messages = [json.loads(text) for text in reversed(self.redis.lrange(queue, 0, -1))]
        return [(message["job"], message.get("chunk", -1)) for message in messages]


@pytest.fixture
def chunks(redis: FakeRedis) -> Shared:
    """Two chunks a tenant."""
    return Shared(redis, chunks=2)


@pytest.fixture
def two_runs(redis: FakeRedis) -> Shared:
    """Two runs a tenant."""
    return Shared(redis, runs=2)


def test_without_limits_nothing_waits_or_is_kept(redis: FakeRedis) -> None:
    shared = Shared(redis)
    run = shared.run("1")

    shared.begin_chunks(run, *range(20))

    assert not shared.runs.shares.are_limited
    assert not redis.keys("*tenants*")


def test_a_chunk_beyond_the_share_waits(chunks: Shared) -> None:
    run = chunks.run("1", "acme")
    chunks.begin_chunks(run, 0, 1)

    outcome, _ = chunks.begin_chunk(run, 2)

    assert outcome == Suspend()
    assert chunks.published() == []


def test_other_tenants_have_shares_of_their_own(chunks: Shared) -> None:
    chunks.begin_chunks(chunks.run("1", "acme"), 0, 1)

    others = [chunks.run("2", "other"), chunks.run("3")]
    assert [chunks.begin_chunk(run, chunk)[0] for run in others for chunk in (0, 1)] == [None] * 4


def test_a_message_without_tenant_is_of_the_workers_own(redis: FakeRedis) -> None:
    shared = Shared(redis, chunks=1, own_tenant="acme")
    shared.begin_chunks(shared.run("1"), 0)

    assert shared.begin_chunk(shared.run("2", "acme"), 0)[0] == Suspend()


def test_a_chunk_that_ends_lets_the_longest_waiting_go_on(chunks: Shared, clock: Clock) -> None:
    # Given chunks of three runs of a tenant, of which the last two wait
    large, small, other = (chunks.run(job, "acme") for job in "123")
    held = chunks.begin_chunks(large, 0, 1)
    for run, chunk in ((small, 7), (other, 8), (large, 2)):
        clock.forward(1)
        chunks.begin_chunk(run, chunk)

    # When one ends, and then the other
    chunks.end_chunk(held[0])
    assert chunks.published() == [("2", 7)]
    chunks.end_chunk(held[1])

    # Then they are published in the order in which they came
    assert chunks.published() == [("2", 7), ("3", 8)]
    # And each has its slot, so that a chunk which comes now waits
    assert chunks.begin_chunk(chunks.run("4", "acme"), 0)[0] == Suspend()
    chunks.begin_chunks(small, 7)
    chunks.begin_chunks(other, 8)


def test_a_chunk_that_comes_overtakes_none_that_waits(chunks: Shared, clock: Clock) -> None:
    # Given a worker that died with both slots, while a chunk waits
    run = chunks.run("1", "acme")
    held = chunks.begin_chunks(run, 0, 1)
    chunks.begin_chunk(run, 2)
    for each in held:
        chunks.release(each)
    clock.forward(6)

    # When another one comes before anybody has looked
    chunks.begin_chunks(run, 3)

    # Then the first one goes on as well
    assert chunks.published() == [("1", 2)]


def test_a_dead_worker_gives_its_slots_back(chunks: Shared, clock: Clock) -> None:
    # Given two chunks on a worker that dies, and one that waits
    run = chunks.run("1", "acme")
    for each in chunks.begin_chunks(run, 0, 1):
        chunks.release(each)  # as its locks expire
    chunks.begin_chunk(run, 2)

    # When it is looked for holders that are gone, and not before
    chunks.runs.shares.hand_out()
    assert chunks.published() == []
    clock.forward(6)
    chunks.runs.shares.hand_out()

    # Then the one that waits goes on
    assert chunks.published() == [("1", 2)]


def test_a_living_worker_keeps_its_slots(chunks: Shared, clock: Clock) -> None:
    run = chunks.run("1", "acme")
    chunks.begin_chunks(run, 0, 1)
    chunks.begin_chunk(run, 2)

    for _ in range(3):
        clock.forward(6)
        chunks.runs.shares.hand_out()

    assert chunks.published() == []


def test_a_redelivered_chunk_has_its_slot(chunks: Shared) -> None:
    run = chunks.run("1", "acme")
    first, _ = chunks.begin_chunks(run, 0, 1)
    chunks.release(first)

    outcome, _ = chunks.begin_chunk(run, 0)

    assert outcome is None


def test_a_late_delivery_frees_no_slot_of_another(chunks: Shared) -> None:
    # Given a delivery whose lock has expired: another one of its chunk has lock and slot, and a chunk waits
    run = chunks.run("1", "acme")
    late, _ = chunks.begin_chunks(run, 0, 1)
    chunks.release(late)
    chunks.begin_chunks(run, 0)
    chunks.begin_chunk(run, 2)

    # When the first one ends
    chunks.end_chunk(late)

    # Then the other one still has its slot
    assert chunks.published() == []


def test_a_late_delivery_frees_no_slot_that_is_handed_out(chunks: Shared, clock: Clock) -> None:
    # Given a delivery whose lock has expired, and its chunk's message, which has waited and just got a slot
    run = chunks.run("1", "acme")
    late, other = chunks.begin_chunks(run, 0, 1)
    chunks.release(late)
    clock.forward(6)
    chunks.runs.shares.hand_out()
    chunks.begin_chunks(run, 2)
    assert chunks.begin_chunk(run, 0)[0] == Suspend()
    clock.forward(1)
    chunks.begin_chunk(run, 3)
    chunks.end_chunk(other)
    assert chunks.published() == [("1", 0)]

    # When the first one ends
    chunks.end_chunk(late)

    # Then the slot is kept for that message, and what waits behind it still waits
    assert chunks.published() == [("1", 0)]


def test_a_message_that_is_sent_again_waits_once(chunks: Shared, clock: Clock) -> None:
    run = chunks.run("1", "acme")
    held = chunks.begin_chunks(run, 0, 1)
    for _ in range(3):
        clock.forward(1)
        chunks.begin_chunk(run, 2)

    for each in held:
        chunks.end_chunk(each)

    assert chunks.published() == [("1", 2)]


def test_chunks_of_a_run_that_has_ended_take_no_slot(chunks: Shared, clock: Clock) -> None:
    # Given a run whose chunks wait, and one of another run behind it
    run, other = chunks.run("1", "acme"), chunks.run("2", "acme")
    held = chunks.begin_chunks(run, 0, 1)
    for waits, chunk in ((run, 2), (run, 3), (other, 0)):
        clock.forward(1)
        chunks.begin_chunk(waits, chunk)

    # When it is stopped
    chunks.runs.finish("1", End(JobStatus.STOPPED, {"error": "stopped"}))
    chunks.end_chunk(held[0])

    # Then the other run goes on
    assert chunks.published() == [("2", 0)]


def test_a_waiting_chunk_keeps_the_priority_of_its_run(chunks: Shared, redis: FakeRedis) -> None:
    run = chunks.run("1", "acme", priority=6)
    held = chunks.begin_chunks(run, 0, 1)
    chunks.begin_chunk(run, 2)

    chunks.end_chunk(held[0])

    assert json.loads(redis.lindex("annotate", 0))["priority"] == 6


def test_a_waiting_chunk_keeps_how_often_it_was_retried(
    chunks: Shared, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a chunk that is delivered again for a dependency that is unavailable, and finds no slot
    run = chunks.run("1", "acme")
    held = chunks.begin_chunks(run, 0, 1)
    for module in (tasks, workflow_task):
        monkeypatch.setattr(module, "services", lambda: SimpleNamespace(runs=chunks.runs))
    kwargs = {"job": "1", "chunk": 2, "generation": 3, "attempt": 4}
    headers = {WAITED_HEADER: 600.0, SEPARATED_HEADER: 2, "of_the_broker": 1}
    with celery_request(tasks.annotate, kwargs, headers=headers):
        tasks.annotate.run(**kwargs)

    # When there is one
    chunks.end_chunk(held[0])

    # Then its message says so still, or it would be retried without end
    message = json.loads(redis.lindex("annotate", 0))
    assert (message["chunk"], message["generation"], message["attempt"]) == (2, 3, 4)
    assert message["headers"] == {WAITED_HEADER: 600.0, SEPARATED_HEADER: 2}


def test_a_waiting_run_is_not_found_overdue(chunks: Shared, clock: Clock) -> None:
    run = chunks.run("1", "acme")
    chunks.begin_chunks(run, 0, 1)
    chunks.begin_chunk(run, 2)

    clock.forward(1_000)

    assert chunks.runs.heartbeats.overdue() == []


def test_where_queues_are_elsewhere_a_chunk_looks_again(
    redis: FakeRedis, publisher: RecordingPublisher
) -> None:
    shared = Shared(redis, chunks=1)
    shared.runs = Runs(redis, publisher, Timing(VISIBILITY_TIMEOUT), share_limits=ShareLimits(chunks=1))
    run = shared.run("1")
    shared.begin_chunks(run, 0)

    assert shared.begin_chunk(run, 1)[0] == Reschedule(OTHER_BROKER_SECONDS, keeps_retries=True)


def test_where_queues_are_elsewhere_a_run_says_why_it_waits(
    redis: FakeRedis, publisher: RecordingPublisher
) -> None:
    # Given a run that has the only slot of its tenant, and one that has none
    shared = Shared(redis, runs=1)
    shared.runs = Runs(redis, publisher, Timing(VISIBILITY_TIMEOUT), share_limits=ShareLimits(runs=1))
    shares, first, second = shared.runs.shares, shared.run("1"), shared.run("2")
    assert shares.take_run(first, INITIALIZE) is None
    assert shares.take_run(second, INITIALIZE) == Reschedule(OTHER_BROKER_SECONDS, keeps_retries=True)

    assert "which has 1 at once" in str(redis.hget(job_key("2"), "waiting_for"))

    # When the first one has ended, then it does not wait any more
    shared.runs.finish("1", DONE)
    assert shares.take_run(second, INITIALIZE) is None
    assert not redis.hexists(job_key("2"), "waiting_for")


def test_a_run_beyond_the_share_waits_until_another_has_ended(two_runs: Shared, redis: FakeRedis) -> None:
    # Given two runs of a tenant under way, and a third one
    shares = two_runs.runs.shares
    first, second, third = (two_runs.run(job, "acme") for job in "123")
    assert [shares.take_run(run, INITIALIZE) for run in (first, second)] == [None, None]

    assert shares.take_run(third, INITIALIZE) == Suspend()
    assert "which has 2 at once" in str(redis.hget(job_key("3"), "waiting_for"))
    assert shares.take_run(two_runs.run("4", "other"), INITIALIZE) is None

    # When one ends
    two_runs.runs.finish("2", DONE)

    # Then the third one begins, and has the slot
    assert two_runs.published("to_task") == [("3", -1)]
    assert shares.take_run(third, INITIALIZE) is None
    assert shares.take_run(two_runs.run("5", "acme"), INITIALIZE) == Suspend()


def test_a_run_that_an_older_worker_has_ended_has_no_slot(
    two_runs: Shared, redis: FakeRedis, clock: Clock
) -> None:
    shares = two_runs.runs.shares
    runs = [two_runs.run(job, "acme") for job in "123"]
    for run in runs:
        shares.take_run(run, INITIALIZE)
    redis.hset(run_key("1"), RunField.ENDED, "{}")
    clock.forward(6)

    shares.hand_out()

    assert two_runs.published("to_task") == [("3", -1)]


def test_nobody_looks_at_tenants_of_which_nothing_waits(chunks: Shared, redis: FakeRedis) -> None:
    run = chunks.run("1", "acme")
    held = chunks.begin_chunks(run, 0, 1)
    chunks.begin_chunk(run, 2)
    assert redis.smembers(tenants_key(Share.CHUNKS)) == {"acme"}

    for each in held:
        chunks.end_chunk(each)

    assert redis.smembers(tenants_key(Share.CHUNKS)) == set()


@pytest.mark.parametrize("share", ["chunks", "runs"])
def test_what_waits_goes_on_once_the_limit_is_taken_off(redis: FakeRedis, clock: Clock, share: str) -> None:
    # Given a chunk or a run that waits, and one of a run that has ended
    limited, one_of_each = Shared(redis, **{share: 1}), ["1", "2", "3"]
    for run in [limited.run(job, "acme") for job in one_of_each]:
        clock.forward(1)
        if share == "runs":
            limited.runs.shares.take_run(run, INITIALIZE)
        else:
            limited.begin_chunk(run, 0)
    limited.runs.store.finish("2", DONE)

    # When the workers are started without the limit
    shared = Shared(redis)
    shared.runs.shares.hand_out()
    assert shared.published("to_task") + shared.published() == []
    shared.runs.shares.publish_waiting()

    # Then it goes on, and nothing is left of those that waited
    published = shared.published("to_task") if share == "runs" else shared.published()
    assert [job for job, _ in published] == ["3"]
    assert redis.keys("*tenants*") == [f"synapse:tenants:{share}:slots:acme"]


@pytest.mark.parametrize("limit", ["still limited", "not limited any more"])
@pytest.mark.parametrize("share", ["chunks", "runs"])
def test_sweep_finds_what_waited_at_another_broker(
    redis: FakeRedis, clock: Clock, share: str, limit: str
) -> None:
    # Given a chunk or a run that waits, since the queues were in the Redis of the runs
    limited = Shared(redis, **{share: 1})
    for run in [limited.run(job, "acme") for job in ("1", "2")]:
        clock.forward(1)
        if share == "runs":
            limited.runs.shares.take_run(run, INITIALIZE)
        else:
            limited.begin_chunk(run, 0)
        limited.runs.heartbeats.schedule(run_member(run.job), 3600)
    limited.runs.store.finish("1", DONE)
    clock.forward(60)

    # When the slots are handed out by workers with another broker
    limits = ShareLimits(**{share: 1} if limit == "still limited" else {})
    runs = Runs(redis, RecordingPublisher(), Timing(VISIBILITY_TIMEOUT), share_limits=limits)
    runs.shares.publish_waiting()
    runs.shares.hand_out()

    # Then no message is put into a queue that nobody reads, and the sweep publishes the step
    assert limited.published("to_task") + limited.published() == []
    assert "run:2" in runs.heartbeats.overdue()


def test_what_waits_for_a_limited_share_stays(two_runs: Shared) -> None:
    for job in "123":
        two_runs.runs.shares.take_run(two_runs.run(job, "acme"), INITIALIZE)

    two_runs.runs.shares.publish_waiting()

    assert two_runs.published("to_task") == []


@pytest.mark.parametrize("share", ["chunks", "runs"])
def test_keys_of_a_tenant_that_is_seen_no_more_expire(redis: FakeRedis, clock: Clock, share: str) -> None:
    # Given a tenant with a holder that is never given back, and one that waits
    limited = Shared(redis, **{share: 1})
    for run in [limited.run(job, "acme") for job in "12"]:
        if share == "runs":
            limited.runs.shares.take_run(run, INITIALIZE)
        else:
            limited.begin_chunk(run, 0)

    # When nothing of it comes for long, then nothing is kept of it
    assert len(redis.keys("*tenants*")) == 4
    assert all(redis.ttl(key) > 0 for key in redis.keys("*tenants*"))
    clock.forward(8 * 24 * 60 * 60)
    assert redis.keys("*tenants*") == []


@pytest.mark.parametrize("damaged", [b"\xff", "[", "7", None])
def test_a_damaged_message_keeps_no_other_one_waiting(
    chunks: Shared, redis: FakeRedis, clock: Clock, damaged: str | bytes | None
) -> None:
    # Given two chunks that wait, and the message of the first one is damaged
    run = chunks.run("1", "acme")
    held = chunks.begin_chunks(run, 0, 1)
    for number in (2, 3):
        clock.forward(1)
        chunks.begin_chunk(run, number)
    first = redis.zrange(slots_key(Share.CHUNKS, "acme", "waiting"), 0, 0)[0]
    messages = slots_key(Share.CHUNKS, "acme", "messages")
    if damaged is None:
        redis.hdel(messages, first)
    else:
        redis.hset(messages, first, damaged)

    # When a slot is free
    chunks.end_chunk(held[0])

    # Then the other one goes on
    assert chunks.published() == [("1", 3)]
