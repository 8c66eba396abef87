"""What comes on a channel of Redis, where Celery's commands are, is a message or is left out."""

import json
from typing import Any

import pytest

from worker.broker.transport import Channel

COMMAND = {
    "body": "W10=",
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {},
    "properties": {"body_encoding": "base64", "delivery_info": {"exchange": "celery.pidbox"}},
}


def received(*response: Any) -> Any:
    return Channel._handle_message(Channel.__new__(Channel), None, list(response))["data"]


def test_command_is_passed_on_with_all_that_kombu_needs() -> None:
    text = json.dumps(COMMAND).encode()

    found = json.loads(received(b"pmessage", b"/0.celery.pidbox", b"/0.celery.pidbox", text))

    assert found["body"] == COMMAND["body"]
    assert found["properties"].keys() >= {"delivery_tag", "delivery_info", "body_encoding"}


@pytest.mark.parametrize(
    "data", [b"no JSON", b"[" * 100_000, b"[]", b"5", b"null", b"{}", b'{"body": 5}', b"\xff", b""]
)
def test_what_is_no_message_is_left_out(data: bytes) -> None:
    assert not received(b"message", b"/0.celery.pidbox", data)


def test_confirmed_subscription_is_no_message() -> None:
    assert received(b"psubscribe", b"/0.celery.pidbox", 1) == 1
