"""An error of Celery's tracer ends only the message that caused it."""

import json
from typing import Any

import pytest
from celery.exceptions import Reject

from worker.broker.consumer import guarded_tracer
from worker.broker.rejections import RejectedMessage, message_rejected

REQUEST: dict[str, Any] = {"chain": [{"task": "x"}], "chord": None, "id": "1"}


def failing_trace(*_: Any) -> Any:
    raise MemoryError("hush-values-of-the-message")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[RejectedMessage]:
    found: list[RejectedMessage] = []

    def keep(rejected: RejectedMessage, **_: Any) -> None:
        found.append(rejected)

    monkeypatch.setattr(message_rejected, "receivers", [])
    message_rejected.connect(keep, weak=False)
    return found


def test_tracer_result_is_passed_on(kept: list[RejectedMessage]) -> None:
    assert guarded_tracer("stop", lambda *said: said)("1", [], {"job": 7}, REQUEST) == (
        "1",
        [],
        {"job": 7},
        REQUEST,
    )
    assert kept == []


def test_message_that_breaks_the_tracer_is_kept_as_failed(kept: list[RejectedMessage]) -> None:
    # When the tracer raises
    outcome = guarded_tracer("stop", failing_trace)("1", [], {"job": 7}, REQUEST)

    # Then Celery hears of a task that failed, and the message is kept whole without what was raised
    assert outcome.info
    assert str(outcome.retval.exception.exc) == "cannot be run: MemoryError"
    [letter] = kept
    assert (letter.task, letter.message_id, letter.kwargs) == ("stop", "1", {"job": 7})
    assert letter.reason == "cannot be run: MemoryError"
    assert json.loads(letter.body)[:2] == [[], {"job": 7}]
    assert json.loads(letter.body)[2]["chain"] == [{"task": "x"}]


def test_message_that_cannot_be_kept_is_requeued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_rejected, "receivers", [])

    outcome = guarded_tracer("stop", failing_trace)("1", [], {}, None)

    assert isinstance(outcome.retval.exception.exc, Reject)
    assert outcome.retval.exception.exc.requeue
