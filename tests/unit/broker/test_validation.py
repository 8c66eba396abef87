"""Which elements, bodies and headers are messages of tasks, and why the others are not."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import compression
from kombu.message import Message
from kombu.transport.virtual import Channel
from kombu.transport.virtual import Message as VirtualMessage

from tests.unit.broker.task_messages import message
from worker.broker.validation import (
    MAX_BODY_BYTES,
    MalformedError,
    NotATaskError,
    TooLargeError,
    check_task_message,
    limit_decompression,
    parse_element,
)
from worker.platform.requests import MAX_DEPTH, too_deep

ENVELOPE: dict[str, Any] = {
    "body": "W1tdLCB7fSwge31d",
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"task": "noop", "id": "1"},
    "properties": {
        "body_encoding": "base64",
        "delivery_tag": "old",
        "delivery_info": {"routing_key": "first"},
    },
}


class Codecs(Channel):
    def __init__(self) -> None:
        pass


def opened(envelope: Any) -> dict[str, Any]:
    element = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return parse_element(element, "new", Codecs().decode_body)


def test_parsed_envelope_gets_the_tag_of_this_delivery() -> None:
    envelope = opened(ENVELOPE)
    message = VirtualMessage(envelope, channel=Codecs())
    assert message.delivery_tag == "new"
    assert message.payload == [[], {}, {}]


def test_envelope_needs_no_tag() -> None:
    properties = {"delivery_info": {}, "body_encoding": "base64"}
    assert opened(ENVELOPE | {"properties": properties})["properties"]["delivery_tag"] == "new"


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"__type__": "datetime", "__value__": "soon"}', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (ENVELOPE | {"x": json.loads("[" * 200 + "]" * 200)}, "nested too deeply"),
        ([ENVELOPE], "not a JSON object"),
        (ENVELOPE | {"properties": None}, "no properties"),
        (ENVELOPE | {"headers": "h"}, "headers is not a dict"),
        (ENVELOPE | {"content-type": ["x"]}, "content-type is not a str"),
        (ENVELOPE | {"body": "a"}, "body cannot be decoded"),
        (ENVELOPE | {"properties": {"body_encoding": "rot13"}}, "body cannot be decoded"),
        (ENVELOPE | {"properties": {"delivery_info": "first"}}, "delivery_info is not a dict"),
        (ENVELOPE | {"properties": {"delivery_info": {"routing_key": ["x"]}}}, "routing_key is not a str"),
        (ENVELOPE | {"properties": {"delivery_info": {"exchange": 5}}}, "exchange is not a str"),
    ],
)
def test_malformed_element_says_why(envelope: Any, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        opened(envelope)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=10,
)


def is_message_or_malformed(open_it: Callable[[], dict[str, Any]]) -> bool:
    """Any other error goes through."""
    try:
        envelope = open_it()
    except MalformedError:
        return True
    return VirtualMessage(envelope, channel=Codecs()).delivery_tag == "new"


@given(
    st.binary() | st.dictionaries(st.sampled_from(sorted(ENVELOPE)), ANYTHING).map(json.dumps).map(str.encode)
)
def test_any_element_is_a_message_or_malformed(element: bytes) -> None:
    assert is_message_or_malformed(lambda: parse_element(element, "new", Codecs().decode_body))


@given(st.dictionaries(st.sampled_from(["headers", "properties", "body", "content-type"]), ANYTHING))
def test_envelope_with_any_part_is_a_message_or_malformed(parts: dict[str, Any]) -> None:
    assert is_message_or_malformed(lambda: opened(ENVELOPE | parts))


def test_nesting_is_limited_by_depth_not_by_size() -> None:
    for levels, deep in ((MAX_DEPTH, False), (MAX_DEPTH + 1, False), (MAX_DEPTH + 2, True), (500, True)):
        text = "[" * levels + "]" * levels
        assert too_deep(text, json.loads(text)) is deep, levels
    wide = json.dumps([{}] * 1000)
    assert not too_deep(wide, json.loads(wide))
    assert not too_deep(json.dumps(["["] * 1000), ["["] * 1000)


SIGNATURE: dict[str, Any] = {"task": "stop", "args": [], "kwargs": {}, "options": {}, "immutable": False}


@pytest.mark.parametrize(
    "good",
    [
        message(),
        message([[1], {"a": None}, {"chain": None}]),
        message(eta="2030-01-01T00:00:00+00:00", expires="2030-01-01T00:00:00", retries=3),
        message(timelimit=[None, 3.5], stamped_headers=[], stamps={}),
        message(shadow="other", group="g", root_id="1", origin="me", ignore_result=True),
        message([[], {}, {"callbacks": [SIGNATURE], "errbacks": [], "chain": None, "chord": SIGNATURE}]),
        message({"task": "deploy", "id": "1", "args": [], "kwargs": {}}, task="absent", id="absent"),
        message({"task": "deploy", "id": "1"}, task="absent", id="absent"),
        message({"args": [], "kwargs": {}}),
    ],
)
def test_task_message_is_accepted(good: Message) -> None:
    assert check_task_message(good) is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (message(task="absent"), "no header task"),
        (message(id="absent"), "no header id"),
        (message(id=5), "no header id"),
        (message(task=["x"]), "no header task"),
        (message("oops"), "not JSON"),
        (message("[" * 100_000), "not JSON"),
        (message([[], {}]), r"not \[args, kwargs, embed\]"),
        (message({"job": 7}), r"not \[args, kwargs, embed\]"),
        (message([None, {}, {}]), "args is not a list"),
        (message([[], [], {}]), "kwargs is not a dict"),
        (message([[], {}, None]), "embed is not a dict"),
        (message(content_type="application/x-python-serialize"), "content type"),
        (message(eta="soon"), "eta is not a time"),
        (message(eta=""), "eta is not a time"),
        (message(eta="0001-01-01T00:00:00+14:00"), "eta is not a time"),
        (message(expires=[]), "expires is not a time"),
        (message(retries="3"), "retries is not a count"),
        (message(timelimit=[1]), "timelimit"),
        (message(stamped_headers=["x"], stamps={}), "stamp"),
        (message(get=5), "name of something of Celery's own"),
        (message(_get_custom_headers="x"), "name of something of Celery's own"),
        (message({"task": "deploy", "id": "1", "update": 1}, task="absent"), "Celery's own"),
        (message(shadow=["x"]), "shadow is not a text"),
        (message([[], {}, {"get": 5}]), "embed has more"),
        (message([[], {}, {"chain": [5]}]), "chain is not made of tasks"),
        (message([[], {}, {"chain": "x"}]), "chain is not made of tasks"),
        (message([[], {}, {"callbacks": [{**SIGNATURE, "options": 5}]}]), "callbacks is not"),
        (message([[], {}, {"chord": [SIGNATURE]}]), "chord is not made of tasks"),
        (message(errbacks={"task": "x"}), "errbacks is not made of tasks"),
        (message(f'[[], {{"x": {"[" * 300}{"]" * 300}}}, {{}}]'), "nested too deeply"),
    ],
)
def test_message_that_is_no_task_says_why(bad: Message, reason: str) -> None:
    with pytest.raises(NotATaskError, match=reason):
        check_task_message(bad)


HEADER_NAMES = st.sampled_from(
    ["task", "id", "eta", "expires", "retries", "timelimit", "stamps", "stamped_headers"]
)


@given(ANYTHING, st.dictionaries(HEADER_NAMES, ANYTHING))
def test_any_message_is_a_task_or_rejected(body: Any, headers: dict[str, Any]) -> None:
    reason = "accepted"

    try:
        check_task_message(message(body, **headers))
    except NotATaskError as error:
        reason = str(error)

    assert reason


FORMATS = ["gzip", "bzip2", "lzma"]


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compression, "_decoders", dict(compression._decoders))
    monkeypatch.setattr(compression, "_encoders", dict(compression._encoders))
    compression.register(lambda body: body, lambda body: body, "application/x-boundless", ["boundless"])
    limit_decompression()
    yield
    del compression._aliases["boundless"]


def compressed_message(body: bytes, packed_as: str) -> Any:
    headers = {"task": "deploy", "id": "1", "compression": packed_as}
    return Message(
        body=body,
        headers=headers,
        content_type="application/json",
        content_encoding="utf-8",
        accept={"application/json"},
    )


def error_of(message: Any) -> Any:
    """The error that the consumer receives in place of the message."""
    [(_, error, _)] = message.errors
    return error


@pytest.mark.parametrize("name", FORMATS)
def test_compressed_message_is_read(name: str) -> None:
    packed, content_type = compression.compress(json.dumps([[], {"job": 7}, {}]), name)

    check_task_message(read := compressed_message(packed, content_type))

    assert read.payload[1] == {"job": 7}


@pytest.mark.parametrize("name", FORMATS)
def test_message_that_decompresses_to_too_much_is_an_error(name: str) -> None:
    packed, content_type = compression.compress(b" " * (MAX_BODY_BYTES + 1), name)

    assert isinstance(error_of(compressed_message(packed, content_type)), TooLargeError)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_compressed_message_is_an_error(name: str) -> None:
    packed, content_type = compression.compress(json.dumps([[], {"job": 7}, {}]), name)

    assert isinstance(error_of(compressed_message(packed[:-1], content_type)), EOFError)


def test_format_without_a_limit_is_not_decompressed() -> None:
    assert isinstance(error_of(compressed_message(b"[[], {}, {}]", "application/x-boundless")), TooLargeError)
