"""Whatever changes of a run's public record is published: a listener knows as much as a reader of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.runs.example_workflow import FIRST, SECOND, VISIBILITY_TIMEOUT
from tests.unit.to_task.world import World
from worker.console.live_runs import LiveRuns, read_change
from worker.pre_processor.waitlist import DISPATCH, Waitlist, WaitlistName, waiting_deadlines
from worker.runs.keys import changes_channel
from worker.runs.model import STOPPED, End, Step, Suspend
from worker.runs.runs import Runs, Timing
from worker.runs.shares.tenants import ShareLimits
from worker.runs.store import CollectedMessage
from worker.to_task.clients import EventLoopThread
from worker.workflow.capacity import CapacityWaitlist
from worker.workflow.dead_letters import DeadLetters

JOB = "42"
NAME = WaitlistName("", 1, "digits", "1.0.0")


class CollectingPublisher(RecordingPublisher):
    """Gives what is published to a script."""

    def __init__(self) -> None:
        super().__init__()
        self._collected: list[CollectedMessage] = []

    def publish(self, *_: Any, **__: Any) -> None:
        self._collected.append(CollectedMessage(("to_task", ""), "LPUSH", "{}"))

    @contextmanager
    def collecting(self) -> Iterator[list[CollectedMessage]]:
        self._collected = []
        yield self._collected


class Listener:
    """What was published since it was made."""

    def __init__(self, redis: FakeRedis) -> None:
        self._pubsub = redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(changes_channel())
        assert self._pubsub.get_message() is None

    def messages(self) -> list[dict[str, Any]]:
        return list(self._new())

    def _new(self) -> Iterator[dict[str, Any]]:
        while (message := self._pubsub.get_message()) is not None:
            yield json.loads(message["data"])

    def heard_of(self, job: str) -> dict[str, Any]:
        """What a page knows of the run that only listened."""
        runs = LiveRuns()
        for change in self.messages():
            runs.apply(str(change.pop("job")), change, 0.0)
        return runs.snapshot()[job]


def assert_knows_the_record(listener: Listener, redis: FakeRedis) -> None:
    record = read_change(redis.hgetall(job_key(JOB)))
    heard = listener.heard_of(JOB)
    assert {**heard, "updated": 0} == {**heard, **record, "updated": 0}


@pytest.fixture
def listener(redis: FakeRedis) -> Listener:
    return Listener(redis)


def accept(runs: Runs) -> None:
    message = DeployMessage.model_validate({"job": JOB, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")


def begin(runs: Runs, step: Step) -> None:
    runs.store.claim_step(JOB, step, "", step.name, 30, 0, False)


def test_deployment_is_heard_from_its_message_to_its_end(
    redis: FakeRedis, runs: Runs, listener: Listener
) -> None:
    # Given a run that goes through two steps and fails
    accept(runs)
    begin(runs, FIRST)
    runs.store.mark_running(JOB)
    runs.progress.set(JOB, {"initialize": 40, "deploy": 60}, "deploy", 50)
    begin(runs, SECOND)
    runs.store.finish(JOB, End(JobStatus.FAILED, {"error": "no <b>room</b>"}))

    # Then who listened knows what the record says
    assert_knows_the_record(listener, redis)


def test_counts_of_a_pre_annotation_are_heard(redis: FakeRedis) -> None:
    # Given a run that annotates every task
    loop, listener = EventLoopThread(), Listener(redis)
    try:
        world = World(redis, loop)
        world.backend.tasks = list(range(1, 26))
        end = world.work()
        world.runs.store.finish(JOB, End(end.status, end.result))
    finally:
        loop.close()

    # Then their number and what came of them was published
    heard = listener.heard_of(JOB)
    assert (heard["total"], heard["success"], heard["status"]) == (25, 25, "SUCCEEDED")


def test_run_that_was_stopped_before_it_began_is_heard(
    redis: FakeRedis, runs: Runs, listener: Listener
) -> None:
    runs.store.remember_stop(JOB)

    accept(runs)

    assert_knows_the_record(listener, redis)


def test_wait_for_a_pre_processor_is_heard_with_its_deadline(
    redis: FakeRedis, runs: Runs, listener: Listener
) -> None:
    # Given a run that waits
    accept(runs)
    begin(runs, DISPATCH)
    Waitlist(redis, NAME).join(JOB, 180)

    # Then it is heard for what, since when and until when at most
    heard = listener.heard_of(JOB)
    assert heard["waiting_for"] == "pre-processor digits@1.0.0"
    assert abs(heard["waiting_until"] - heard["waiting_since"] - 180) <= 1
    assert heard["waiting_until"] == int(waiting_deadlines(redis)[JOB])


def test_end_of_a_wait_is_heard(redis: FakeRedis, runs: Runs, listener: Listener) -> None:
    accept(runs)
    begin(runs, DISPATCH)
    Waitlist(redis, NAME).join(JOB, 180)

    runs.store.finish(JOB, STOPPED)

    assert listener.heard_of(JOB)["waiting_for"] == ""


def test_repeated_look_of_a_run_that_waits_is_no_change(
    redis: FakeRedis, runs: Runs, listener: Listener
) -> None:
    # Given a deployment that waits for capacity
    accept(runs)
    place = CapacityWaitlist(redis, None, 1).look(JOB, None)
    assert listener.heard_of(JOB)["waiting_for"] == "capacity of agent 1"

    # When it looks again, then nothing is published
    CapacityWaitlist(redis, None, 1).look(JOB, place.came_at)
    assert listener.messages() == []


def test_wait_for_the_share_of_a_tenant_is_heard_and_its_end(redis: FakeRedis, listener: Listener) -> None:
    # Given a tenant that has as many runs as it may have
    timing, limits = Timing(VISIBILITY_TIMEOUT), ShareLimits(runs=1)
    runs = Runs(redis, CollectingPublisher(), timing, share_limits=limits)
    fields = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "s"}
    for job in ("1", JOB):
        message = {"job": job, "plugin": "digits@1.0.0", "params": fields}
        runs.store.accept(ToTaskMessage.model_validate(message), "to_task")
    first, waits = runs.store.load("1"), runs.store.load(JOB)
    assert runs.shares.take_run(first, FIRST) is None

    # When another one waits
    assert runs.shares.take_run(waits, FIRST) == Suspend()

    # Then it is heard for what it waits, and later that it goes on
    heard = [change for change in listener.messages() if change["job"] == JOB and "waiting_for" in change]
    assert [change["waiting_for"] for change in heard] == [redis.hget(job_key(JOB), "waiting_for")]
    runs.finish("1", STOPPED)
    listener.messages()
    assert runs.shares.take_run(waits, FIRST) is None
    assert [change["waiting_for"] for change in listener.messages()] == [""]
    assert not redis.hget(job_key(JOB), "waiting_for")


def test_what_a_run_says_of_its_wait_is_heard(runs: Runs, listener: Listener) -> None:
    accept(runs)

    runs.events.message(JOB, "digits@1.0.0 needs a GPU", in_log=False)

    assert listener.heard_of(JOB)["message"] == "digits@1.0.0 needs a GPU"


def test_logged_message_is_heard_in_the_log_alone(runs: Runs, listener: Listener) -> None:
    accept(runs)
    listener.messages()

    runs.events.message(JOB, "annotating")

    assert listener.messages() == []


def test_message_that_no_json_reader_takes_disturbs_nothing(runs: Runs, listener: Listener) -> None:
    # Given a text with half of a surrogate pair
    accept(runs)

    runs.events.message(JOB, "half \ud800 a pair", in_log=False)

    assert listener.heard_of(JOB)["status"] == "PENDING"


def test_new_dead_letter_is_heard(redis: FakeRedis, listener: Listener) -> None:
    DeadLetters(redis).add("deploy", "{}", "not a Celery message")

    (letter,) = DeadLetters(redis).all()
    assert listener.messages() == [{"dead_letter": letter.id}]
