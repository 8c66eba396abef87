"""Messages of steps in a real Redis: before or behind others, later, or published by the script of a step."""

import json
import math
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals
from celery.exceptions import Retry
from redis import Redis

from shared.messages import DeployMessage
from tests.harness.in_process_worker import celery_request
from tests.integration.broker.broker_harness import BrokerHarness
from worker.broker.keys import delayed_key, earlier_key
from worker.broker.transport import Channel
from worker.lua import Scripts, redis_time
from worker.pre_processor.poll import resume
from worker.pre_processor.waitlist import Waitlist, WaitlistName
from worker.runs.keys import heartbeats_key
from worker.runs.model import Continue, Reschedule, Step, StoredRun, Workflow
from worker.runs.publisher import CeleryPublisher
from worker.runs.runs import Runs, Timing
from worker.runs.state import StoredState
from worker.runs.store import CollectedMessage
from worker.workflow.task import StepTask

FIRST, SECOND, CHUNK = (
    Workflow(DeployMessage, StoredState).step("first", 10),
    Step("second", 20),
    Step("chunk", 30, queue="second", has_parts=True),
)


@pytest.fixture
def app(broker: BrokerHarness) -> Iterator[Celery]:
    with Celery("test", broker=broker.url, amqp="worker.broker:AMQP", set_as_current=False) as app:
        yield app


@pytest.fixture
def redis(broker: BrokerHarness) -> Iterator["Redis"]:
    with Redis.from_url(broker.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def runs(app: Celery, redis: "Redis") -> Runs:
    return Runs(redis, CeleryPublisher(app, shares_redis=True), Timing(60.0))


@pytest.fixture
def run(runs: Runs) -> StoredRun:
    """A run whose first step has begun."""
    message = DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "first")
    claim = runs.store.claim_step("42", FIRST, "", "token", 60.0, 0, False)
    assert claim.run is not None
    return claim.run


def names(redis: "Redis", queue: str) -> list[str]:
    """The tasks of the messages in a queue, in the order in which they are fetched."""
    return [json.loads(each)["headers"]["task"] for each in reversed(redis.lrange(queue, 0, -1))]


def test_the_next_step_of_a_run_goes_before_new_runs(app: Celery, redis: "Redis") -> None:
    publisher = CeleryPublisher(app)
    for name in ("deploy", "to_task"):
        app.send_task(name, queue="first")

    publisher.publish(SECOND, "first", {"job": "42"})

    assert names(redis, "first") == ["second", "deploy", "to_task"]


def test_chunks_stay_in_their_order(app: Celery, redis: "Redis") -> None:
    publisher = CeleryPublisher(app)
    for job in ("1", "2"):
        publisher.publish(CHUNK, "second", {"job": job})

    fetched = [json.loads(each)["headers"]["kwargsrepr"] for each in reversed(redis.lrange("second", 0, -1))]
    assert fetched == ["{'job': '1'}", "{'job': '2'}"]


def test_a_step_publishes_the_next_one_and_releases_at_once(
    runs: Runs, run: StoredRun, redis: "Redis"
) -> None:
    published: list[str] = []
    signals.after_task_publish.connect(
        lambda sender, **_: published.append(sender), weak=False, dispatch_uid="test"
    )
    redis.delete(heartbeats_key())

    assert runs.continue_with(run, Continue(SECOND))

    assert run.lease is not None
    assert (names(redis, "first"), published) == (["second"], ["second"])
    assert not redis.exists(run.lease.key)
    assert redis.zscore(heartbeats_key(), "run:42") is not None
    signals.after_task_publish.disconnect(dispatch_uid="test")


def test_a_step_without_its_lock_publishes_the_next_one(runs: Runs, run: StoredRun, redis: "Redis") -> None:
    assert run.lease is not None
    redis.set(run.lease.key, "another")

    assert not runs.continue_with(run, Continue(SECOND))

    assert names(redis, "first") == ["second"]
    assert redis.get(run.lease.key) == "another"


@pytest.fixture
def task(app: Celery, runs: Runs) -> StepTask:
    """The task of the first step, for messages that are delivered by hand."""
    of_test = runs

    class TaskOfTest(StepTask):
        abstract = True

        @property
        def runs(self) -> Runs:
            return of_test

    @app.task(base=TaskOfTest, bind=True, name=FIRST.name)
    def first(self: StepTask, job: str, **_: Any) -> None: ...

    return first


def reschedule(task: StepTask, countdown: float, **arguments: Any) -> None:
    """Deliver a message of the first step, which is then to be delivered again after `countdown`."""
    kwargs = {"job": "42", **arguments}
    with celery_request(task, kwargs, headers={}), pytest.raises(Retry):
        task.run_step(FIRST, "42", lambda _: Reschedule(countdown))


def delayed(redis: "Redis", queue: str) -> list[dict[str, Any]]:
    """The arguments of the delayed messages of a queue, the earliest first."""
    texts = redis.zrange(delayed_key(queue), 0, -1)
    bodies = [json.loads(text.partition("\n")[2])["body"] for text in texts]
    return [json.loads(b64decode(body))[1] for body in bodies]


def test_a_rescheduled_step_costs_two_round_trips(
    runs: Runs, task: StepTask, redis: "Redis", broker: BrokerHarness
) -> None:
    # Given a run, and a Redis that has the scripts
    runs.store.accept(DeployMessage.model_validate({"job": 42, "plugin": "p@1", "agent": 1}), "first")
    reschedule(task, 5.0)

    # When its step is rescheduled
    with Redis.from_url(broker.url) as observer, observer.monitor() as monitor:
        reschedule(task, 5.0, generation=1)
        redis.echo("end")
        commands = []
        while not (command := monitor.next_command())["command"].startswith("ECHO"):
            if command["client_type"] != "lua":
                commands.append(command["command"].split()[0])

    # Then one script claims and loads, and one announces, publishes, records and releases
    assert commands == ["EVALSHA", "EVALSHA"]
    assert [each["generation"] for each in delayed(redis, "deploy")] == [1, 2]
    assert redis.keys("*:lock:*") == []


def test_a_rescheduled_step_is_due_after_its_countdown(runs: Runs, task: StepTask, redis: "Redis") -> None:
    runs.store.accept(DeployMessage.model_validate({"job": 42, "plugin": "p@1", "agent": 1}), "first")

    before = redis_time(redis)
    reschedule(task, 5.0)
    after = redis_time(redis)

    [(_, due)] = redis.zrange(delayed_key("deploy"), 0, -1, withscores=True)
    # Celery's ETA is a time of the publisher's clock, cut to microseconds.
    assert before + 4.9 < due <= after + 5.0
    assert redis.exists(earlier_key())


def test_a_step_rescheduled_at_once_is_in_its_queue(runs: Runs, task: StepTask, redis: "Redis") -> None:
    runs.store.accept(DeployMessage.model_validate({"job": 42, "plugin": "p@1", "agent": 1}), "first")

    reschedule(task, 0.0)

    assert (names(redis, "deploy"), delayed(redis, "deploy")) == (["first"], [])


def test_a_lost_answer_publishes_no_poll_twice(runs: Runs, run: StoredRun, redis: "Redis") -> None:
    message = CollectedMessage((delayed_key("first"), earlier_key()), "ZADD", "first\n{}", 5.0)

    generations = [runs.store.reschedule_step(run, FIRST.name, 5.0, [message])]
    redis.delete(delayed_key("first"))
    generations.append(runs.store.reschedule_step(run, FIRST.name, 5.0, [message]))

    assert generations == [1, 1]
    assert redis.zcard(delayed_key("first")) == 0


def test_a_later_next_step_is_published_by_the_script(
    runs: Runs, run: StoredRun, redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts: list[str] = []
    run_script = Scripts.run
    monkeypatch.setattr(
        Scripts, "run", lambda self, name, *args: (scripts.append(name), run_script(self, name, *args))[1]
    )

    assert runs.continue_with(run, Continue(SECOND, countdown=5.0))

    assert (scripts, [each["job"] for each in delayed(redis, "first")]) == (["end_step"], ["42"])


def test_runs_leave_their_list_with_their_messages(
    runs: Runs, redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given runs that wait, one after the other
    waitlist = Waitlist(redis, WaitlistName("", 1, "digits", "1.0.0"))
    messages = [DeployMessage.model_validate({"job": job, "plugin": "p@1", "agent": 1}) for job in (1, 2, 3)]
    for message in messages:
        runs.store.accept(message, "first")
        waitlist.join(message.job, 60.0)
    redis.delete(heartbeats_key())
    scripts: list[str] = []
    run_script = Scripts.run
    monkeypatch.setattr(
        Scripts, "run", lambda self, name, *args: (scripts.append(name), run_script(self, name, *args))[1]
    )

    # When their pre-processor runs
    resume(waitlist, runs, math.inf)

    # Then one script has published the next step of all, in their order, and has emptied the list
    fetched = [json.loads(each) for each in reversed(redis.lrange("first", 0, -1))]
    assert {each["headers"]["task"] for each in fetched} == {"to_task.fetch_tasks"}
    assert [each["headers"]["kwargsrepr"] for each in fetched] == [f"{{'job': '{job}'}}" for job in (1, 2, 3)]
    assert (waitlist.waiters(), scripts) == ([], ["resume"])
    assert redis.zcard(heartbeats_key()) == 3


def test_a_separate_broker_has_the_message_before_the_release(
    app: Celery, run: StoredRun, redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(redis, CeleryPublisher(app), Timing(60.0))
    end_step, waiting = runs.store.end_step, []

    def ends(*args: object) -> bool:
        waiting.append(names(redis, "first"))
        return end_step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(runs.store, "end_step", ends)

    assert runs.continue_with(run, Continue(SECOND))
    assert (waiting, names(redis, "first")) == ([["second"]], ["second"])


def test_publishers_of_a_pool_have_the_transport_of_the_app(app: Celery) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        assert isinstance(producer.channel, Channel)
