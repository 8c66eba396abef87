"""The door of a room's poll."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.exceptions import Retry
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.unit.pre_processor.room_helpers import NAME, FakeBackend, Hall
from worker.pre_processor import tasks


class Door:
    """Delivers polls; keeps what was published instead of acknowledged."""

    def __init__(self) -> None:
        self.again: list[tuple[dict[str, Any], float]] = []

    def poll(self, *, redelivered: bool = False, **kwargs: Any) -> None:
        task = tasks.await_ready
        task.push_request(
            id=uuid4().hex,
            args=[],
            kwargs=kwargs,
            called_directly=False,
            delivery_info={"exchange": "", "routing_key": "to_task", "redelivered": redelivered},
        )
        try:
            task.run(**kwargs)
        except Retry:
            assert self.again
        finally:
            task.pop_request()


@pytest.fixture
def door(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    door = Door()
    app = Celery("test", broker="memory://", set_as_current=False)
    monkeypatch.setattr("celery._state._tls.current_app", app)
    monkeypatch.setattr(tasks, "services", lambda: hall.services)
    monkeypatch.setattr("worker.workflow.task.services", lambda: hall.services)

    def publish(args: object = None, kwargs: Any = None, **options: Any) -> None:
        door.again.append((kwargs, options["countdown"]))

    monkeypatch.setattr(tasks.await_ready.__class__, "apply_async", staticmethod(publish))
    return door


def test_a_poll_comes_back_as_the_next_generation(hall: Hall, door: Door) -> None:
    hall.enter("1")
    hall.wait("1")
    door.poll(room=NAME.key, generation=1)
    [(kwargs, countdown)] = door.again
    assert kwargs == {"room": NAME.key, "generation": 2, "attempt": 1, "redelivered": False}
    assert 0 < countdown <= 1


def test_the_last_poll_does_not_come_back(hall: Hall, door: Door, api: FakeBackend) -> None:
    hall.enter("1")
    hall.wait("1")
    api.runs_now()
    door.poll(room=NAME.key, generation=1)
    assert door.again == []


def test_a_poll_without_redis_comes_back_as_if_redelivered(
    hall: Hall, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poll(*args: Any, **kwargs: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr("worker.pre_processor.poll.await_ready", poll)
    door.poll(room=NAME.key, generation=1)
    [(kwargs, countdown)] = door.again
    assert (kwargs["generation"], kwargs["redelivered"], countdown) == (1, True, 1.0)


def test_a_redelivered_poll_publishes_the_next_one(hall: Hall, door: Door) -> None:
    hall.enter("1")
    hall.wait("1")
    hall.poll(1)  # its retry never reached the broker
    door.poll(room=NAME.key, generation=1, redelivered=True)
    [(kwargs, _)] = door.again
    assert kwargs["generation"] == 2
