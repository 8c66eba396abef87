"""Messages are fetched, delayed, requeued and acknowledged by scripts, by Redis's clock."""

import json
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import fakeredis
import pytest

from worker.broker import delivery
from worker.broker.delivery import (
    STUCK_SECONDS,
    PendingAcks,
    QoS,
    Unacked,
    mark_redelivered,
    pending_acks_of,
)
from worker.broker.keys import (
    delayed_key,
    redelivering_key,
    redelivery_key,
    tokens_key,
    unacked_key,
    watcher_key,
)
from worker.broker.transport import FETCH_SCRIPT, Channel
from worker.broker.validation import parse_element
from worker.chunk_requests import ChunkRequests
from worker.pool import pool

MESSAGE = json.dumps({"headers": {}, "properties": {"delivery_info": {}}, "body": "é"}).encode()


@pytest.fixture
def redis() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis()


@pytest.fixture
def unacked(redis: fakeredis.FakeRedis) -> Unacked:
    return Unacked(redis)


def fetch(
    redis: Any,
    tag: str,
    *lists: str,
    seconds: float = 60,
    acknowledged: str = "1",
    consumer: str = "",
    is_free: bool = True,
) -> Any:
    """What the script answers a consumer of the queues of these names."""
    of_broker = [unacked_key(), redelivery_key(), redelivering_key(), watcher_key(lists), tokens_key(lists)]
    keys = [*of_broker, *map(delayed_key, lists), *lists]
    options = [tag, seconds, consumer, 1500, int(is_free), len(lists)]
    return redis.eval(FETCH_SCRIPT, len(keys), *keys, *options, *[acknowledged] * len(lists))


def fetched(redis: Any, tag: str, *lists: str, **options: Any) -> Any:
    """The list and the message."""
    return fetch(redis, tag, *lists, **options)[:2]


def test_fetch_pops_from_the_first_list_that_has_a_message(redis: Any) -> None:
    redis.lpush("b", "older", "newer")
    assert fetched(redis, "1", "a", "b") == [b"b", b"older"]
    assert fetched(redis, "2", "a", "b") == [b"b", b"newer"]
    assert fetched(redis, "3", "a", "b") == [None, None]
    assert redis.hgetall(unacked_key()) == {b"1": b"b\nolder", b"2": b"b\nnewer"}
    assert abs(redis.zscore(redelivery_key(), "1") - time.time() - 60) < 5


def test_fetch_without_acknowledgement_records_nothing(redis: Any) -> None:
    redis.lpush("a", "x")
    assert fetched(redis, "1", "a", acknowledged="0") == [b"a", b"x"]
    assert redis.keys() == []


MORE, WATCHES, NEXT_DUE, OVERDUE = 2, 3, 4, 5


def test_one_of_several_idle_consumers_watches(redis: Any) -> None:
    assert [fetch(redis, "1", "a", consumer=name)[WATCHES] for name in ("x", "y", "x")] == [1, 0, 1]
    assert redis.pttl(watcher_key(["a"])) > 0
    assert fetch(redis, "1", "b", consumer="y")[WATCHES] == 1, "of other queues"


def test_free_watcher_keeps_the_watch_for_a_single_message(redis: Any) -> None:
    fetch(redis, "1", "a", consumer="x")
    redis.lpush("a", MESSAGE)

    answer = fetch(redis, "2", "a", consumer="x")

    assert (answer[MORE], answer[WATCHES]) == (0, 1)
    assert not redis.exists(tokens_key(["a"]))


@pytest.mark.parametrize(("messages", "is_free"), [(2, True), (1, False)])
def test_watcher_that_gets_busy_leaves_one_token(redis: Any, messages: int, is_free: bool) -> None:
    # Given a watcher, and more messages than one or no capacity for a second
    fetch(redis, "1", "a", consumer="x")
    redis.lpush("a", *[MESSAGE] * messages)

    # When it fetches
    assert fetch(redis, "2", "a", consumer="x", is_free=is_free)[WATCHES] == 0

    # Then nobody watches, and whoever takes the token and finds nothing does
    assert not redis.exists(watcher_key(["a"]))
    assert redis.llen(tokens_key(["a"])) == 1
    redis.delete("a")
    assert fetch(redis, "3", "a", consumer="y")[WATCHES] == 1
    assert not redis.exists(tokens_key(["a"]))


def test_message_that_others_fetch_leaves_the_watch_as_it_is(redis: Any) -> None:
    fetch(redis, "1", "a", consumer="x")
    redis.lpush("a", MESSAGE, MESSAGE)
    assert fetch(redis, "2", "a", consumer="y")[MORE:OVERDUE] == [1, 0, None]
    assert redis.get(watcher_key(["a"])) == b"x"
    assert not redis.exists(tokens_key(["a"]))


def test_stopping_watcher_leaves_a_token(redis: Any, unacked: Unacked) -> None:
    keys = [watcher_key(["a"]), tokens_key(["a"])]
    fetch(redis, "1", "a", consumer="x")
    unacked.release_watch(keys, "y")
    assert redis.get(keys[0]) == b"x", "another one watches"
    unacked.release_watch(keys, "x")
    unacked.release_watch(keys, "x")
    assert not redis.exists(keys[0])
    assert redis.llen(keys[1]) == 1


def test_due_messages_are_fetched_first_in_their_order(redis: Any, unacked: Unacked) -> None:
    # Given messages whose time has come, one whose time has not, and one without a time
    for seconds in (-2, -3, 30):
        unacked.delay("a", f"a\n{seconds}", seconds)
    redis.lpush("a", "waits")

    # When they are fetched
    answers = [fetch(redis, str(number), "a", "b") for number in range(4)]

    # Then the one that is not due is left, and the answer says when it is
    assert [answer[1] for answer in answers] == [b"-3", b"-2", b"waits", None]
    assert 29 < float(answers[3][NEXT_DUE]) <= 30
    assert redis.zrange(delayed_key("a"), 0, -1) == [b"a\n30"]


def test_fetched_message_is_delayed_until_its_time(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "1", "a")
    assert not unacked.delay_until("1", time.time() - 1), "its time has come"
    assert redis.hlen(unacked_key()) == 1
    assert unacked.delay_until("1", time.time() + 30)
    assert unacked.delay_until("1", time.time() + 30), "it is gone"
    assert not redis.exists(unacked_key(), redelivery_key(), "a")
    assert redis.zrange(delayed_key("a"), 0, -1) == [b"a\n" + MESSAGE]


def test_one_of_those_who_fetch_is_to_redeliver(redis: Any) -> None:
    assert fetch(redis, "1", "a")[OVERDUE] == 0
    redis.zadd(redelivery_key(), {"overdue": time.time() - 1})
    assert [fetch(redis, "1", "a")[OVERDUE] for _ in range(3)] == [1, 0, 0]


def test_redelivered_message_carries_its_count_of_deliveries(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    counts = []
    for tag in ("1", "2", "3"):
        _, element = fetched(redis, tag, "a")
        counts.append(parse_element(element, tag, lambda body, _: body)["properties"]["deliveries"])
        unacked.requeue([tag])
    assert counts == [1, 2, 3]


def test_acknowledged_message_is_deleted(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "1", "a")
    unacked.remove("1")
    assert redis.keys() == []


def test_requeued_message_is_next_or_last_and_marked(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE, MESSAGE, "waits")
    fetch(redis, "1", "a")
    fetch(redis, "2", "a")
    assert unacked.requeue(["1", "gone"]) == 1
    assert unacked.requeue(["2"], last=True) == 1
    assert unacked.requeue(["1", "2"]) == 0, "only one requeues it"
    last, waits, following = redis.lrange("a", 0, -1)
    assert waits == b"waits"
    for text in (last, following):
        message = json.loads(text)
        assert message["headers"]["redelivered"]
        assert message["properties"]["delivery_info"]["redelivered"]
    assert not redis.exists(unacked_key(), redelivery_key())


def test_only_overdue_messages_are_requeued(redis: Any, unacked: Unacked) -> None:
    for _ in range(250):
        redis.lpush("a", MESSAGE)
    for tag in range(250):
        fetch(redis, str(tag), "a", seconds=-1 if tag < 220 else 60)
    assert unacked.requeue_overdue() == 220
    assert redis.llen("a") == 220
    assert redis.hlen(unacked_key()) == redis.zcard(redelivery_key()) == 30


def test_extended_message_is_not_overdue(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "1", "a", seconds=-1)
    unacked.extend(["1", "acknowledged"], 60)
    assert unacked.requeue_overdue() == 0
    assert redis.zrange(redelivery_key(), 0, -1) == [b"1"]


def test_acknowledging_one_delivery_leaves_the_other(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "first", "a", seconds=-1)
    unacked.requeue_overdue()
    fetch(redis, "second", "a")
    unacked.remove("first")
    assert redis.hkeys(unacked_key()) == redis.zrange(redelivery_key(), 0, -1) == [b"second"]


def test_tag_without_a_message_is_removed(redis: Any, unacked: Unacked) -> None:
    redis.zadd(redelivery_key(), {"orphan": 1})
    assert unacked.requeue_overdue() == 0
    assert not redis.exists(redelivery_key())


def test_element_that_is_no_message_is_requeued_unchanged() -> None:
    for text in (b"oops", b"[]", b"\xff", b'{"headers": 1}', b"[" * 100_000):
        assert mark_redelivered(text) == text


def test_pending_acks_are_flushed_once_in_order(unacked: Unacked) -> None:
    pending, run = PendingAcks(), []
    pending.add(lambda _: run.append(1))
    pending.add(lambda _: run.append(2))
    pending.flush(unacked)
    pending.flush(unacked)
    assert run == [1, 2]


def test_ack_that_fails_stays_pending(unacked: Unacked) -> None:
    pending, unavailable = PendingAcks(), [True]

    def command(_: Unacked) -> None:
        if unavailable[0]:
            raise ConnectionError

    pending.add(command)
    with pytest.raises(ConnectionError):
        pending.flush(unacked)
    unavailable[0] = False
    pending.flush(unacked)
    assert len(pending) == 0


def test_pending_acks_belong_to_a_broker() -> None:
    assert pending_acks_of("h", 1, "/0") is pending_acks_of("h", 1, "/0")
    assert pending_acks_of("h", 1, "/0") is not pending_acks_of("h", 1, "/1")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("away"),
        ValueError("I/O operation on closed file."),
        AttributeError("'NoneType' object has no attribute 'readline'"),
    ],
)
def test_ack_amid_which_its_connection_is_closed_is_deferred(unacked: Unacked, error: Exception) -> None:
    # Given a channel whose connections the consumer closes while another thread acknowledges
    pending, run = PendingAcks(), []
    channel = SimpleNamespace(closed=False, unacked=unacked, pending_acks=pending)

    def acknowledge(_: Unacked) -> None:
        run.append(1)
        if len(run) == 1:
            raise error

    Channel.run_or_defer(cast(Channel, channel), acknowledge)

    # Then the acknowledgement is not lost
    pending.flush(unacked)
    assert run == [1, 1]


@dataclass
class Worker:
    """A worker of eight threads and of all queues, that consumes chunks."""

    qos: QoS
    fetches: list[None]
    moment: float = 0.0

    def is_full(self) -> bool:
        return self.qos.is_full("annotate")

    def hold(self, tag: str) -> None:
        self.qos.hold(tag, "annotate")

    def release(self, tag: str) -> None:
        self.qos._free([tag])


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    fetches: list[None] = []
    loop = SimpleNamespace(call_soon=lambda function: function())
    cycle = SimpleNamespace(cycle=SimpleNamespace(loop=loop))
    channel = SimpleNamespace(connection=cycle, fetch_soon=lambda: fetches.append(None), do_restore=False)
    found = Worker(QoS(channel, prefetch_count=8), fetches)
    monkeypatch.setattr(pool, "worker", SimpleNamespace(max_concurrency=8))
    monkeypatch.setattr(pool, "consumes", lambda queue: True)
    monkeypatch.setattr(delivery, "chunk_requests", ChunkRequests())
    monkeypatch.setattr(delivery, "monotonic", lambda: found.moment)
    return found


def test_chunks_are_left_in_the_queue_that_may_find_no_slot(worker: Worker) -> None:
    # Given the chunks that one release may have at work
    full = []
    for tag in "abc":
        full.append(worker.is_full())
        worker.hold(tag)
    assert full == [False] * 3
    assert worker.is_full()
    assert not worker.qos.is_full("to_task"), "other queues are fetched from"

    # When one has ended, then the next is fetched
    worker.release("b")
    assert not worker.is_full()
    assert len(worker.fetches) == 1


def test_chunks_that_are_stuck_leave_the_other_slots_to_others(worker: Worker) -> None:
    for tag in "abc":
        worker.hold(tag)
    assert worker.is_full()

    # When none of them has ended for a while
    worker.moment += STUCK_SECONDS
    assert not worker.is_full()

    # Then as many are fetched as have threads, also after one of these went back
    worker.hold("d")
    worker.hold("e")
    assert worker.is_full()
    worker.release("e")
    assert not worker.is_full()

    # And with the end of one that is at work this is over
    for tag in "da":
        worker.release(tag)
    worker.hold("f")
    assert worker.is_full()


def test_chunks_whose_requests_would_only_wait_are_not_fetched(worker: Worker) -> None:
    # Given a chunk that uses all requests of the process
    requests, count = delivery.chunk_requests, [64]
    requests.most = 64
    requests.begin(lambda: count[0])
    worker.hold("a")
    assert worker.is_full()

    # When it has answers to some
    count[0] = 63
    requests.have_changed()

    # Then the worker fetches
    assert len(worker.fetches) == 1
    assert not worker.is_full()


def test_a_chunk_goes_on_while_its_workers_channel_is_closed(worker: Worker) -> None:
    # Given a worker that waits for free requests, and then loses its connection to the broker
    requests, count = delivery.chunk_requests, [64]
    requests.most = 64
    requests.begin(lambda: count[0])
    worker.hold("a")
    assert worker.is_full()
    worker.qos.channel.connection = None

    # When the chunk has answers, then it is not disturbed
    count[0] = 0
    requests.have_changed()

    assert worker.fetches == []
