"""No message stops or crashes a worker, loops, or blocks those behind it; each is kept whole."""

import base64
import json
import zlib
from typing import Any

import pytest

from tests.integration.broker.broker_harness import BrokerHarness, element

MARK = "mark-of-the-message"
VALID = element(body=[["valid"], {}, {}], headers={"task": "record"})
KWARGS: Any = {"job": "7", "text": MARK}
NESTED = f'[[], {{"text": "{MARK}", "x": {"[" * 400}{"]" * 400}}}, {{}}]'
DEEPER = f'[[], {{"text": "{MARK}", "x": {"[" * 100_000}{"]" * 100_000}}}, {{}}]'
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def element_without(part: str, *names: str) -> dict[str, Any]:
    envelope = element(body=[[], KWARGS, EMBED])
    for name in names:
        del envelope[part][name]
    return envelope


MALFORMED: dict[str, Any] = {
    "not JSON": f"hello {MARK}",
    "empty": "",
    "not text": b"\xff\xfe" + MARK.encode(),
    "JSON but a list": [MARK],
    "JSON but a number": 5,
    "null": None,
    "no envelope": {"job": MARK},
    "properties a list": element(properties=[MARK]),
    "properties null": element(properties=None, body=MARK),
    "headers a list": element(headers=None) | {"headers": [MARK]},
    "headers null": element(body=[[], KWARGS, EMBED]) | {"headers": None},
    "no body": {k: v for k, v in element(headers={"shadow": MARK}).items() if k != "body"},
    "body a list": element(headers={"shadow": MARK}) | {"body": [1]},
    "body bad base64": element() | {"body": f"a{MARK}"},
    "unknown body encoding": element(body=[[], KWARGS, EMBED])
    | {"properties": {"body_encoding": "rot13", "delivery_tag": "1", "delivery_info": {}}, "body": MARK},
    "delivery info a list": element(body=[[], KWARGS, EMBED])
    | {"properties": {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": [MARK]}},
    "body not JSON": element(raw_body=f"oops {MARK}"),
    "body not text": element() | {"body": "//79" + "bWFyaw=="},
    "body an object": element(body=KWARGS),
    "body two parts": element(body=[[], KWARGS]),
    "body null": element(raw_body="null", headers={"shadow": MARK}),
    "args null": element(body=[None, KWARGS, EMBED]),
    "kwargs a list": element(body=[[], [MARK], EMBED]),
    "embed null": element(body=[[], KWARGS, None]),
    "content type unknown": element(body=[[], KWARGS, EMBED]) | {"content-type": "application/x-other"},
    "content type pickle": element(body=[[], KWARGS, EMBED]) | {"content-type": "application/x-pickle"},
    "content type a number": element(body=[[], KWARGS, EMBED]) | {"content-type": 5},
    "compression unknown": element(body=[[], KWARGS, EMBED], headers={"compression": "shrink"}),
    "compressed, and unpacks to 32 MB": element(headers={"compression": "application/x-gzip"})
    | {"body": base64.b64encode(zlib.compress(b" " * 2**25)).decode()},
    "no id": element_without("headers", "id"),
    "id a list": element(body=[[], KWARGS, EMBED], headers={"id": []}),
    "no task": element_without("headers", "task"),
    "task a number": element(body=[[], KWARGS, EMBED], headers={"task": 5}),
    "task unknown": element(body=[[], KWARGS, EMBED], headers={"task": "unknown.task"}),
    "eta wrong": element(body=[[], KWARGS, EMBED], headers={"eta": "tomorrow"}),
    "eta a number": element(body=[[], KWARGS, EMBED], headers={"eta": 5}),
    "eta out of range": element(body=[[], KWARGS, EMBED], headers={"eta": "9999-12-31T23:59:59-14:00"}),
    "expires wrong": element(body=[[], KWARGS, EMBED], headers={"expires": "never"}),
    "retries a word": element(body=[[], KWARGS, EMBED], headers={"retries": "many"}),
    "time limits a number": element(body=[[], KWARGS, EMBED], headers={"timelimit": 5}),
    "stamps a number": element(body=[[], KWARGS, EMBED], headers={"stamped_headers": 5}),
    "header of a method": element(body=[[], KWARGS, EMBED], headers={"get": 5}),
    "header of Celery's own": element(body=[[], KWARGS, EMBED], headers={"_get_custom_headers": "x"}),
    "shadow a list": element(body=[[], KWARGS, EMBED], headers={"shadow": ["x"]}),
    "embed with a method": element(body=[[], KWARGS, {"get": 5}]),
    "chain of numbers": element(body=[[], KWARGS, {"chain": [5]}]),
    "chord a word": element(body=[[], KWARGS, {"chord": "x"}]),
    "headers nested": element(body=[[], KWARGS, EMBED], headers={"x": json.loads("[" * 300 + "]" * 300)}),
    "nested deeply": element(raw_body=NESTED),
    "nested deeper": element(raw_body=DEEPER),
    "envelope nested": f'{{"mark": "{MARK}", "x": {"[" * 100_000}{"]" * 100_000}}}',
    "a number too large": f'{{"mark": "{MARK}", "x": {"9" * 5_000}}}',
    "old protocol without id": element(body={"task": "noop", "args": [], "kwargs": KWARGS}, headers={})
    | {"headers": {}},
    "old protocol, kwargs a list": element(body={"task": "noop", "id": "1", "args": [], "kwargs": [MARK]})
    | {"headers": {}},
}  # fmt: skip


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_malformed_messages_are_kept_and_block_no_valid_one(broker: BrokerHarness, pool: str) -> None:
    for message in MALFORMED.values():
        raw = message if isinstance(message, str | bytes) else json.dumps(message)
        broker.redis.lpush("first", raw)
    broker.redis.lpush("first", json.dumps(VALID))

    worker = broker.start_worker(pool=pool, concurrency=1)
    broker.wait_for(
        lambda: broker.ended() == ["valid"] and broker.is_empty(), 20, "the valid message behind the others"
    )

    letters = broker.dead_letters()
    log = worker.tail(1_000_000)
    assert len(letters) == len(MALFORMED), [letter["reason"] for letter in letters]
    for name, letter in zip(MALFORMED, letters, strict=True):
        assert letter["reason"], name
        if MARK in json.dumps(MALFORMED[name], default=repr) or name == "not text":
            assert_complete(name, letter)
    assert worker.alive
    assert worker.tail(1_000_000).count("ready") == 1, "it restarted its consumer"
    assert MARK not in log
    assert "Traceback" not in log


def assert_complete(name: str, letter: dict[str, str]) -> None:
    body = letter["body"]
    if body.startswith("base64:"):
        assert name == "not text"
        return
    message = MALFORMED[name]
    if isinstance(message, str):
        assert body == message
        return
    if MARK not in body:
        # Then the message has its mark in the headers, or has no body.
        assert MARK in json.dumps(message["headers"]) or "body" not in message, name
        assert letter["task"] == "noop"


def test_dead_letter_holds_the_whole_message(broker: BrokerHarness) -> None:
    broker.redis.lpush(
        "first", json.dumps(element(body=[[1], KWARGS, EMBED], headers={"task": "unknown.task"}))
    )
    broker.redis.lpush("first", "no JSON at all")
    broker.start_worker()
    broker.wait_for(lambda: len(broker.dead_letters()) == 2, 10, "two dead letters")

    unknown, raw = broker.dead_letters()

    assert (unknown["task"], unknown["reason"]) == ("unknown.task", "unknown task")
    assert json.loads(unknown["body"]) == [[1], KWARGS, EMBED]
    assert (raw["task"], raw["body"]) == ("", "no JSON at all")
    assert raw["reason"].startswith("not JSON")


def test_message_that_breaks_celery_frees_its_slot(broker: BrokerHarness) -> None:
    # Given more messages than slots, whose next task cannot be published, and a valid one behind them
    following = {"task": "record", "args": [], "kwargs": {}, "options": {"queue": 5, "priority": MARK}}
    for _ in range(3):
        broker.redis.lpush("first", json.dumps(element(body=[[], KWARGS, {"chain": [following]}])))
    broker.redis.lpush("first", json.dumps(VALID))

    # When a worker with one slot consumes them
    worker = broker.start_worker(concurrency=1)

    # Then the valid one runs
    broker.wait_for(
        lambda: broker.ended() == ["valid"] and broker.is_empty(), 20, "the valid message behind the others"
    )
    assert worker.alive


def test_message_stays_when_its_dead_letter_cannot_be_written(broker: BrokerHarness) -> None:
    broker.redis.set("synapse:dead_letters", "no stream")
    worker = broker.start_worker(visibility_timeout=2)
    broker.redis.lpush("first", "no JSON at all")
    broker.redis.lpush("first", json.dumps(VALID))
    broker.wait_for(lambda: broker.ended() == ["valid"], 5, "the valid message")
    # (Its task ends a moment before its acknowledgement.)
    broker.wait_for(
        lambda: broker.unacked_count() + broker.redis.llen("first") == 1,
        1,
        "the acknowledgement of the valid one",
    )

    broker.redis.delete("synapse:dead_letters")
    broker.wait_for(lambda: len(broker.dead_letters()) == 1 and broker.is_empty(), 10, "the dead letter")
    assert worker.alive


BAD_COMMANDS = ["no JSON", "[" * 100_000, "[]", "5", "null", '"text"', "{}", '{"body": "W10="}']
BAD_BODIES = ["[]", "5", "no JSON", "[" * 100_000, '{"method": 5}']


def test_what_is_no_command_ends_no_worker(broker: BrokerHarness) -> None:
    # Given a worker that listens to commands
    worker = broker.start_worker()
    broker.wait_for(broker.redis.pubsub_numpat, 20, "its subscription")

    # When something else is published where these come
    for text in (*BAD_COMMANDS, *(json.dumps(element(raw_body=body)) for body in BAD_BODIES)):
        broker.redis.publish("/0.celery.pidbox", text)

    # Then it goes on
    broker.redis.lpush("first", json.dumps(VALID))
    broker.wait_for(lambda: broker.ended() == ["valid"], 20, "the valid message")
    assert worker.alive
