"""The rules of logs without a wire: lines, cuts, events, limits, and what is rejected beforehand."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.platform import StreamError, StreamLimitExceededError, StreamLimits, ValidationError
from worker.platform.streams.lines import LineSplitter
from worker.platform.streams.parser import (
    LogDecoder,
    StreamEvent,
    parse_event,
    transports_for,
    validate_timeout,
)

TEXT = "하나\r\n\x1b[31m둘\x1b[0m 50%\r100%\n\n\u2028셋\x0b\n끝"
LINES = ["하나", "\x1b[31m둘\x1b[0m 50%\r100%", "", "\u2028셋\x0b", "끝"]


def chunks(*pieces: bytes, limits: StreamLimits | None = None) -> tuple[list[str], LogDecoder]:
    return read(LogDecoder.feed_chunk, pieces, limits)


def messages(*pieces: str, limits: StreamLimits | None = None) -> tuple[list[str], LogDecoder]:
    return read(LogDecoder.feed_message, (piece.encode() for piece in pieces), limits)


def read(feed: Any, pieces: Iterable[bytes], limits: StreamLimits | None) -> tuple[list[str], LogDecoder]:
    reader = LogDecoder(limits or StreamLimits())
    lines: list[str] = []
    for piece in pieces:
        if not reader.ended:
            lines += feed(reader, piece)
    return lines + reader.flush(), reader


@given(st.lists(st.integers(0, len(TEXT.encode())), max_size=8))
def test_lines_are_the_same_wherever_the_bytes_are_split(cuts: list[int]) -> None:
    data = TEXT.encode()
    edges = [0, *sorted(cuts), len(data)]

    lines, reader = chunks(*(data[a:b] for a, b in itertools.pairwise(edges)))

    assert lines == LINES
    assert not reader.completed


@given(st.text("ab가\n", max_size=40), st.integers(1, 7))
def test_nothing_is_lost_between_pieces(text: str, size: int) -> None:
    splitter = LineSplitter(1000)

    lines = [line for i in range(0, len(text), size) for line in splitter.feed(text[i : i + size])]

    assert lines + splitter.flush() == (text.removesuffix("\n").split("\n") if text else [])


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("character", ["x", "가", "🙂"])
def test_a_line_that_is_too_long_is_cut_and_says_so(character: str, pieces: int) -> None:
    line = character * 10_000
    splitter = LineSplitter(100)
    step = len(line) // pieces

    parts = [line[i : i + step] for i in range(0, len(line), step)]
    found = [each for part in [*parts, "\nnext\n"] for each in splitter.feed(part)]

    assert found[0].endswith(f"… [cut: {len(line.encode())} bytes]")
    assert found[0].startswith(character * 10)
    assert 90 < len(found[0].encode()) <= 100
    assert found[1:] == ["next"]


def test_a_line_of_just_the_limit_stays_whole() -> None:
    assert LineSplitter(30).feed("가" * 10 + "\n") == ["가" * 10]
    assert LineSplitter(29).feed("가" * 10 + "\n") != ["가" * 10]


def test_a_line_without_an_end_is_not_held() -> None:
    splitter = LineSplitter(10_240, 1_000_000)
    for _ in range(10_000):
        splitter.feed("x" * 1000)

    assert sum(map(len, splitter._pieces)) <= 10_240
    assert splitter.flush()[0].endswith("… [cut: 10000000 bytes]")


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ('{"type": "log", "message": "a"}', StreamEvent("log", "a")),
        ('{"message": ""}', StreamEvent("", "")),
        ('{"type": "heartbeat"}', StreamEvent("heartbeat", None)),
        ('{"type": "error", "message": {"code": 3}}', StreamEvent("error", '{"code": 3}')),
        ('{"message": "\\ud800"}', StreamEvent("", "?")),
        # A job's own output, however much it looks like it.
        ('{"type": "error", "message": "a", "epoch": 3}', None),
        ('{"loss": 0.1}', None),
        ("{}", None),
        ('{"type": 3}', None),
        ("[1]", None),
        ("17", None),
        ('"text"', None),
        ("{" * 100_000, None),
        ('{"message": ' + "[" * 101 + "]" * 101 + "}", None),
        ("plain", None),
        ("", None),
    ],
)
def test_what_is_an_event(text: str, event: StreamEvent | None) -> None:
    assert parse_event(text) == event


def test_events_and_plain_lines_mix_over_http() -> None:
    lines, reader = chunks(
        b'plain\n\ndata: {"type": "log", "message": "\xea\xb0\x80"}\n\ndata: {"message": "b"}\n\n\n',
        b'data: {"type": "ping"}\n\ndata:{"loss": 1}\n\n{"loss": 2}\ndata: text\n\n',
        b'data: {"type": "complete", "message": "bye"}\n\nnever seen\n',
    )

    assert lines == ["plain", "", "가", "b", "", '{"loss": 1}', '{"loss": 2}', "text"]
    assert reader.completed
    assert reader.failure is None


def test_an_event_may_be_longer_than_its_line() -> None:
    message = "가" * 5000
    escaped = "".join(f"\\u{ord(each):04x}" for each in message)

    lines, _ = chunks(f'data: {{"message": "{escaped}"}}\n\n'.encode())

    assert lines == [message[: len(lines[0]) - len("… [cut: 15000 bytes]")] + "… [cut: 15000 bytes]"]


def test_a_message_is_a_line_of_its_own() -> None:
    lines, _ = messages("one", '{"message": "two"}', '{"message": ""}', "a\nb", '{"loss": 1}')

    assert lines == ["one", "two", "", "a", "b", '{"loss": 1}']


def test_messages_that_are_pieces_of_a_text_are_joined() -> None:
    lines, _ = messages("first\nsec", "ond\npar", "ti", '{"message": "al\\n"}', "last")

    # Whether they are pieces shows with the first that ends with a line end; before, each stood alone.
    assert lines == ["first", "sec", "ond", "par", "ti", "al", "last"]

    lines, _ = messages("first\n", "par", "ti", "al\nlast", '{"type": "complete"}')

    assert lines == ["first", "partial", "last"]


def test_a_character_may_be_split_between_messages() -> None:
    lines, _ = read(LogDecoder.feed_message, [b"a\n", "가".encode()[:2], "가".encode()[2:] + b"\n"], None)

    assert lines == ["a", "가"]


@pytest.mark.parametrize(
    ("limits", "given_lines"),
    [
        (StreamLimits(max_lines=3), ["aaaa"] * 3),
        (StreamLimits(max_bytes=11), ["aaaa", "aaaa", "a"]),
        (StreamLimits(max_bytes=10), ["aaaa", "aaaa"]),
    ],
)
def test_what_comes_before_a_limit_is_given(limits: StreamLimits, given_lines: list[str]) -> None:
    lines, reader = chunks(b"aaaa\n" * 10, limits=limits)

    assert lines == given_lines[: len(lines)]
    assert len(lines) >= 2
    assert isinstance(reader.failure, StreamLimitExceededError)
    assert reader.failure.status == 429


def test_a_log_of_just_the_limits_ends_well() -> None:
    limits = StreamLimits(max_messages=2, max_lines=2, max_bytes=10)

    assert chunks(b"aaaa\nbbbb\n", limits=limits)[1].failure is None
    lines, reader = messages("aaaaa", "bbbbb", '{"type": "complete"}', limits=limits)

    assert (lines, reader.completed, reader.failure) == (["aaaaa", "bbbbb"], True, None)


def test_messages_are_counted_whatever_they_hold() -> None:
    _, reader = messages(*['{"type": "ping"}'] * 4, limits=StreamLimits(max_messages=3))

    assert isinstance(reader.failure, StreamLimitExceededError)


def test_an_error_comes_after_the_lines_before_it() -> None:
    lines, reader = messages("a\n", "half", '{"type": "error", "message": "no token=hunter22"}')

    assert lines == ["a", "half"]
    assert type(reader.failure) is StreamError
    assert str(reader.failure) == "no token=***"


def test_the_limits_are_the_document_s() -> None:
    assert dataclasses.astuple(StreamLimits()) == (10_000, 50_000, 50 * 1024 * 1024, 10_240, 1_000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        StreamLimits().max_lines = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="whole numbers"):
        StreamLimits(max_lines=0)


@pytest.mark.parametrize(
    "wrong", [0, -1, float("nan"), float("inf"), "10", None, True, [], 86_401, 10**400, 1j]
)
def test_a_timeout_is_a_number_of_seconds(wrong: object) -> None:
    with pytest.raises(ValidationError):
        validate_timeout(wrong)


def test_what_a_protocol_tries() -> None:
    assert transports_for("auto") == ("websocket", "stream")
    for wrong in ("http", "", None, ["stream"], "STREAM"):
        with pytest.raises(ValidationError):
            transports_for(wrong)
