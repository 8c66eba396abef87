"""An element of a queue is a message or says why not; its tag is that of the delivery."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.virtual import Channel, Message

from worker.broker.validation import MalformedError, open_element
from worker.platform.requests import MAX_DEPTH, too_deep

GOOD: dict[str, Any] = {
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
    return open_element(element, "new", Codecs().decode_body)


def test_a_good_message_gets_the_tag_of_this_delivery() -> None:
    envelope = opened(GOOD)
    message = Message(envelope, channel=Codecs())
    assert message.delivery_tag == "new"
    assert message.payload == [[], {}, {}]


def test_a_message_without_a_tag_is_a_message() -> None:
    properties = {"delivery_info": {}, "body_encoding": "base64"}
    assert opened(GOOD | {"properties": properties})["properties"]["delivery_tag"] == "new"


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"__type__": "datetime", "__value__": "soon"}', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (GOOD | {"x": json.loads("[" * 200 + "]" * 200)}, "nested too deeply"),
        ([GOOD], "not a JSON object"),
        (GOOD | {"properties": None}, "no properties"),
        (GOOD | {"headers": "h"}, "headers is not a dict"),
        (GOOD | {"content-type": ["x"]}, "content-type is not a str"),
        (GOOD | {"body": "a"}, "body cannot be decoded"),
        (GOOD | {"properties": {"body_encoding": "rot13"}}, "body cannot be decoded"),
        (GOOD | {"properties": {"delivery_info": "first"}}, "delivery_info is not a dict"),
        (GOOD | {"properties": {"delivery_info": {"routing_key": ["x"]}}}, "routing_key is not a str"),
        (GOOD | {"properties": {"delivery_info": {"exchange": 5}}}, "exchange is not a str"),
    ],
)
def test_what_is_none_says_why(envelope: Any, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        opened(envelope)


json_values = st.recursive(
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
    return Message(envelope, channel=Codecs()).delivery_tag == "new"


@given(
    st.binary() | st.dictionaries(st.sampled_from(sorted(GOOD)), json_values).map(json.dumps).map(str.encode)
)
def test_whatever_it_is_it_is_a_message_or_malformed(element: bytes) -> None:
    assert is_message_or_malformed(lambda: open_element(element, "new", Codecs().decode_body))


@given(st.dictionaries(st.sampled_from(["headers", "properties", "body", "content-type"]), json_values))
def test_a_good_message_with_parts_replaced(parts: dict[str, Any]) -> None:
    assert is_message_or_malformed(lambda: opened(GOOD | parts))


def test_depth() -> None:
    for levels, deep in ((MAX_DEPTH, False), (MAX_DEPTH + 1, False), (MAX_DEPTH + 2, True), (500, True)):
        text = "[" * levels + "]" * levels
        assert too_deep(text, json.loads(text)) is deep, levels
    wide = json.dumps([{}] * 1000)
    assert not too_deep(wide, json.loads(wide))
    assert not too_deep(json.dumps(["["] * 1000), ["["] * 1000)
