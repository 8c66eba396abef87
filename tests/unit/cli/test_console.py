"""Connections and their errors (one clear line, exit code 1, no password), and safe text on a terminal."""

import pytest

from tests.unit.cli.command_line import UNREACHABLE_REDIS, run_failing
from worker.broker import broker_url
from worker.cli.console import address_suffix, queue_url, terminal_line


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:abc/0",
        "redis://user:private#word@127.0.0.1:6379/0",
        "redis://127.0.0.1:99999/0",
        "redis://redis..svc:6379/0",
        "redis://[::1/0",
        f"{UNREACHABLE_REDIS}?no_such_option=1",
    ],
)
@pytest.mark.parametrize("command", [("status",), ("stop", "1"), ("deploy", "1", "a@1", "--agent", "1")])
def test_bad_redis_url_is_an_error_that_does_not_show_it(url: str, command: tuple[str, ...]) -> None:
    output = run_failing(*command, "--redis-url", url)

    assert output == "error: REDIS_URL is no usable address Look at its host, port, database and options."


@pytest.mark.parametrize(
    "url", ["amqp://h:abc//", "amqp://rabbit..svc//", "amqp://127.0.0.1:9//;amqp://h:abc//"]
)
def test_bad_broker_url_is_an_error(url: str) -> None:
    assert "error: CELERY_BROKER_URL is no usable address" in run_failing("stop", "1", "--broker-url", url)


@pytest.mark.parametrize("url", ["http://h", "redis", ""])
def test_other_scheme_is_an_error_that_names_the_schemes(url: str) -> None:
    for command in (("status",), ("stop", "1")):
        assert "REDIS_URL must start with redis://" in run_failing(*command, "--redis-url", url)


def test_broker_url_of_a_socket_names_the_workers_database() -> None:
    url = queue_url(None, "unix:///run/redis.sock?db=3")
    assert broker_url(url) == "redis+socket:///run/redis.sock?virtual_host=3"


def test_unavailable_redis_is_an_error_with_its_address() -> None:
    assert f"error: Redis at {UNREACHABLE_REDIS} does not answer (ConnectionError)" in run_failing("status")
    assert (
        f"error: the message queue at {UNREACHABLE_REDIS} does not answer (OperationalError)"
        in run_failing("stop", "1")
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:private@127.0.0.1:9/0", " at redis://***@127.0.0.1:9/0"),
        ("redis://127.0.0.1:9/0?password=private", " at redis://127.0.0.1:9/0?password=***"),
        ("redis://:1/private@127.0.0.1:9/0", ""),
        ("amqp://h:9//;amqp://user:private@h:9//", " at amqp://h:9//;amqp://***@h:9//"),
    ],
)
def test_address_in_an_error_has_no_password(url: str, shown: str) -> None:
    assert address_suffix(url) == shown


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        ("plain 한국어\tx", "plain 한국어\tx"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("10 %\r20 %\r", "20 %"),
        ("\x1b[2J\x1b[Hcleared\x1b]0;title\x07\x07", "cleared"),
        ("\x1bcreset\x9b2J", "reset2J"),
    ],
)
def test_terminal_line_keeps_only_colours(printed: str, text: str) -> None:
    assert terminal_line(printed) == text
