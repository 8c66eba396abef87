"""What `doctor` says where RabbitMQ is the broker: of the user's rights, and of the Redis of the runs."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
from amqp.exceptions import ChannelError, NotFound, PreconditionFailed, error_for_code
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from typer.testing import CliRunner

from shared.redis_url import RedisUrl
from worker.cli.checks import doctor as doctor_module
from worker.cli.checks import rabbitmq_check
from worker.cli.checks.rabbitmq_check import left_in_redis, missing_rights
from worker.cli.main import app

HELD = "synapse:broker:held"
READS = "a worker without CELERY_BROKER_URL reads"
Doctor = Callable[..., list[str]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """What the command says of its queue, with a RabbitMQ that answers and lacks nothing."""
    broker = SimpleNamespace(transport=SimpleNamespace(driver_type="amqp"))
    monkeypatch.setattr(doctor_module, "Connection", lambda *_, **__: contextlib.nullcontext(broker))
    monkeypatch.setattr(doctor_module, "_connect_to_broker", lambda _url: "RabbitMQ 4.1.0")
    monkeypatch.setattr(doctor_module, "missing_rights", lambda *_: iter(()))
    monkeypatch.setattr(doctor_module, "_waiting_messages", lambda _url: {})
    monkeypatch.setattr(doctor_module, "active_queues", dict)
    environ = {
        "SYNAPSE_HOST": "http://127.0.0.1:9",
        "SYNAPSE_ACCESS_TOKEN": "token-of-the-worker",
        "PLUGINS_DIR": str(tmp_path),
        "REDIS_URL": "redis://127.0.0.1:9/0",
        "CELERY_BROKER_URL": "amqp://127.0.0.1:9//",
        "RAY_ADDRESS": "",
    }

    def run(**changed: str) -> list[str]:
        done = CliRunner().invoke(app, ["doctor"], env={**environ, **changed})
        return [line for line in done.stdout.splitlines() if line[2:].startswith("queue")]

    return run


@pytest.mark.parametrize("keyprefix", ["", "staging:"])
def test_messages_left_in_the_redis_are_a_warning(redis: fakeredis.FakeRedis, keyprefix: str) -> None:
    # Given messages that wait, also of an agent and with a priority, a delayed one, and held ones
    redis.lpush(f"{keyprefix}to_task", "a", "b")
    redis.lpush(f"{keyprefix}to_task\x06\x169", "c")
    redis.lpush(f"{keyprefix}deploy.7", "a")
    redis.zadd(f"{keyprefix}synapse:broker:delayed:annotate", {"a": 1})
    redis.hset(f"{keyprefix}{HELD}", mapping={"tag": "a", "tag2": "b"})
    # And some that no worker would read, and another installation's
    redis.lpush(f"{keyprefix}celery", "a")
    redis.lpush("other:to_task", "a")

    # When they are looked for
    found = list(left_in_redis(redis, keyprefix))

    # Then each place is a warning that says what to do
    place = "the Redis of REDIS_URL"
    assert [finding.text for finding in found] == [
        f"1 message lies in annotate of {place}: {READS} it (docs/rabbitmq.md)",
        f"1 message lies in deploy.7 of {place}: {READS} it (docs/rabbitmq.md)",
        f"3 messages lie in to_task of {place}: {READS} them (docs/rabbitmq.md)",
        f"2 messages lie unacknowledged in {place}: {READS} them (docs/rabbitmq.md)",
    ]
    assert not any(finding.is_error for finding in found)


def test_redis_without_messages_is_no_warning(redis: fakeredis.FakeRedis) -> None:
    redis.set("synapse:jobs:{42}", "a run")

    assert list(left_in_redis(redis)) == []


def test_user_who_may_not_read_what_is_held_sees_the_rest(
    redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    # Given a message that waits, and a user without a right to those that are held
    def denied(*_: object) -> int:
        raise NoPermissionError

    redis.lpush("control", "a")
    monkeypatch.setattr(RedisUrl, "client", lambda *_, **__: redis)
    monkeypatch.setattr(rabbitmq_check, "held_messages", denied)

    # When the environment is checked, then that one is shown
    assert [line for line in doctor() if "1 message lies in control" in line]


def test_doctor_warns_of_them_and_the_queue_is_fine(
    redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    # Given a message that nobody has read when the broker was changed
    asked: list[dict[str, Any]] = []
    redis.lpush("to_task", "a")
    monkeypatch.setattr(RedisUrl, "client", lambda _, **options: (asked.append(options), redis)[1])

    # When the environment of a new worker is checked
    first, *_, last = doctor()

    # Then the doctor warns, and no Redis that does not answer would keep it
    assert first.startswith(f"! queue: 1 message lies in to_task of the Redis of REDIS_URL: {READS} it")
    assert last == "✓ queue: connected to RabbitMQ 4.1.0"
    assert all(options["socket_timeout"] <= 5 for options in asked), asked


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9/0", "redis://redis..svc/0"])
def test_redis_that_cannot_be_asked_is_no_fault_of_the_queue(doctor: Doctor, url: str) -> None:
    assert doctor(REDIS_URL=url) == ["✓ queue: connected to RabbitMQ 4.1.0"]


def test_redis_that_goes_meanwhile_is_no_fault_of_the_queue(
    redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    def unavailable(*_: object) -> dict[str, int]:
        raise RedisConnectionError("Connection closed by server.")

    monkeypatch.setattr(RedisUrl, "client", lambda *_, **__: redis)
    monkeypatch.setattr(rabbitmq_check, "waiting_messages", unavailable)

    assert doctor() == ["✓ queue: connected to RabbitMQ 4.1.0"]


class FakeChannel:
    """As much of a channel as the check needs. Its RabbitMQ has no queue, or all of them have crashed."""

    def __init__(self, denied: str) -> None:
        self._denied = denied

    def queue_declare(self, queue: str, *, passive: bool = False, **_: Any) -> None:
        if passive:
            raise NotFound(f"queue '{queue}' has crashed and failed to restart")
        if queue == self._denied:
            raise error_for_code(403, f"no access to queue '{queue}'", (50, 10), ChannelError)
        raise PreconditionFailed("invalid type 'signedint' for arg 'x-dead-letter-exchange'")

    def queue_delete(self, queue: str, **_: Any) -> None:
        raise AssertionError(f"{queue} is deleted, with its messages if it has crashed")

    def queue_unbind(self, *_: Any) -> None:
        pass

    def prepare_message(self, *_: Any, **__: Any) -> None:
        pass

    basic_publish = basic_qos = close = prepare_message


def rights_missing(denied: str = "", agent: int | None = None) -> list[str]:
    connection: Any = SimpleNamespace(channel=lambda: FakeChannel(denied))
    return [finding.text.partition(":")[0] for finding in missing_rights(connection, agent)]


def test_no_queue_is_deleted_to_ask_for_a_right() -> None:
    assert rights_missing() == []


def test_a_queue_that_may_not_be_declared_is_named() -> None:
    assert rights_missing(denied="annotate") == ["the user lacks the right to configure annotate"]


def test_a_worker_of_one_agent_needs_its_queue_too() -> None:
    missing = ["the user lacks the right to configure deploy.7"]

    assert rights_missing(denied="deploy.7", agent=7) == missing
    assert rights_missing(denied="deploy.7") == []
