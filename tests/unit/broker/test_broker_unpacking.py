"""A compressed message is unpacked, but never to more than a message may have."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import compression
from kombu.message import Message

from worker.broker.validation import LARGEST_BODY, TooLargeError, check, limit_unpacking

FORMATS = ["gzip", "bzip2", "lzma"]


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compression, "_decoders", dict(compression._decoders))
    monkeypatch.setattr(compression, "_encoders", dict(compression._encoders))
    compression.register(lambda body: body, lambda body: body, "application/x-boundless", ["boundless"])
    limit_unpacking()
    yield
    del compression._aliases["boundless"]


def message(body: bytes, packed_as: str) -> Any:
    headers = {"task": "deploy", "id": "1", "compression": packed_as}
    return Message(
        body=body,
        headers=headers,
        content_type="application/json",
        content_encoding="utf-8",
        accept={"application/json"},
    )


def error_of(message: Any) -> Any:
    """What the consumer is told of it, in place of a message."""
    [(_, error, _)] = message.errors
    return error


@pytest.mark.parametrize("name", FORMATS)
def test_a_compressed_message_is_read(name: str) -> None:
    packed, content_type = compression.compress(json.dumps([[], {"job": 7}, {}]), name)

    check(read := message(packed, content_type))

    assert read.payload[1] == {"job": 7}


@pytest.mark.parametrize("name", FORMATS)
def test_what_unpacks_to_too_much_is_no_message(name: str) -> None:
    packed, content_type = compression.compress(b" " * (LARGEST_BODY + 1), name)

    assert isinstance(error_of(message(packed, content_type)), TooLargeError)


@pytest.mark.parametrize("name", FORMATS)
def test_what_breaks_off_is_no_message(name: str) -> None:
    packed, content_type = compression.compress(json.dumps([[], {"job": 7}, {}]), name)

    assert isinstance(error_of(message(packed[:-1], content_type)), EOFError)


def test_a_format_that_cannot_be_limited_is_not_unpacked() -> None:
    assert isinstance(error_of(message(b"[[], {}, {}]", "application/x-boundless")), TooLargeError)
