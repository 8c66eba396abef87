"""What Celery's tracer raises ends the one message over which it stumbled."""

import json
from typing import Any

import pytest
from celery.exceptions import Reject

from worker.broker.consumer import unfailing
from worker.broker.rejections import RefusedMessage, message_refused

REQUEST: dict[str, Any] = {"chain": [{"task": "x"}], "chord": None, "id": "1"}


def stumbles(*_: Any) -> Any:
    raise MemoryError("hush-values-of-the-message")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[RefusedMessage]:
    found: list[RefusedMessage] = []

    def keep(refused: RefusedMessage, **_: Any) -> None:
        found.append(refused)

    monkeypatch.setattr(message_refused, "receivers", [])
    message_refused.connect(keep, weak=False)
    return found


def test_what_the_tracer_says_is_passed_on(kept: list[RefusedMessage]) -> None:
    assert unfailing("stop", lambda *said: said)("1", [], {"job": 7}, REQUEST) == (
        "1",
        [],
        {"job": 7},
        REQUEST,
    )
    assert kept == []


def test_a_message_over_which_it_stumbles_is_kept_and_counts_as_failed(kept: list[RefusedMessage]) -> None:
    # When the tracer raises
    outcome = unfailing("stop", stumbles)("1", [], {"job": 7}, REQUEST)

    # Then Celery hears of a task that failed, and the message is kept whole without what was raised
    assert outcome.info
    assert str(outcome.retval.exception.exc) == "cannot be run: MemoryError"
    [letter] = kept
    assert (letter.task, letter.message_id, letter.kwargs) == ("stop", "1", {"job": 7})
    assert letter.reason == "cannot be run: MemoryError"
    assert json.loads(letter.body)[:2] == [[], {"job": 7}]
    assert json.loads(letter.body)[2]["chain"] == [{"task": "x"}]


def test_a_message_that_cannot_be_kept_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_refused, "receivers", [])

    outcome = unfailing("stop", stumbles)("1", [], {}, None)

    assert isinstance(outcome.retval.exception.exc, Reject)
    assert outcome.retval.exception.exc.requeue
