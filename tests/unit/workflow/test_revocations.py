"""Revoked ids are kept in Redis, for workers that start later."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from celery.worker.control import Panel

from worker.lua import redis_time
from worker.workflow import revocations
from worker.workflow.revocations import KEPT_SECONDS, RevocationsStep, keep_revoked, revoked_key


@pytest.fixture(autouse=True)
def revoked(redis: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What this process knows, which is nothing at first."""
    monkeypatch.setattr(revocations, "services", lambda: SimpleNamespace(redis=redis))
    state.revoked.clear()
    yield state.revoked
    state.revoked.clear()


def test_worker_that_starts_later_knows_what_was_revoked(revoked: Any) -> None:
    # Given a worker that revokes two messages, and ends
    consumer = SimpleNamespace(pool=None)
    backend = SimpleNamespace(get_state=lambda _: "SUCCESS")
    app = SimpleNamespace(backend=backend)
    Panel.data["revoke"](SimpleNamespace(consumer=consumer, app=app), ["one", "two"])
    revoked.clear()

    # When another one starts
    timer = SimpleNamespace(call_after=lambda *_: None)
    RevocationsStep(SimpleNamespace()).start(SimpleNamespace(timer=timer))

    # Then it knows them
    assert set(revoked) == {"one", "two"}


def test_ids_are_forgotten_after_hours(redis: Any, revoked: Any) -> None:
    redis.zadd(revoked_key(), {"old": redis_time(redis) - KEPT_SECONDS - 1})
    revocations.load_revoked(redis)
    assert not list(revoked)
    keep_revoked(redis, ["new"])
    assert redis.zrange(revoked_key(), 0, -1) == ["new"]
    assert 0 < redis.ttl(revoked_key()) <= KEPT_SECONDS
