"""A message that reached no task shares the dead letter and its job's end with one that a task refused."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shared.channels import DEAD_LETTERS
from tests.unit.runs.runs_helpers import RecordingSender
from worker.broker.rejections import RefusedMessage, keep, message_refused
from worker.workflow import dead_letters


@pytest.fixture
def sender(redis: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingSender]:
    """What the app publishes once it has connected the rejections of the broker."""
    sender = RecordingSender()
    runs = SimpleNamespace(publisher=sender, store=SimpleNamespace(exists=lambda job: job == "known"))
    monkeypatch.setattr(dead_letters, "services", lambda: SimpleNamespace(redis=redis, runs=runs))
    message_refused.connect(dead_letters.reject_undelivered)
    yield sender
    message_refused.disconnect(dead_letters.reject_undelivered)


def refused(task: str = "deploy", **kwargs: Any) -> RefusedMessage:
    return RefusedMessage(task, json.dumps([[], kwargs, None]), "embed is not a dict", None, kwargs or None)


def test_its_job_ends_failed_with_the_reason(redis: Any, sender: RecordingSender) -> None:
    message = refused(job=7, tenant="t")
    assert keep(None, message)
    ((_, letter),) = redis.xrange(DEAD_LETTERS)
    assert (letter["task"], letter["body"], letter["reason"]) == ("deploy", message.body, message.reason)
    (sent,) = sender.sent
    assert sent.name == dead_letters.FAIL_REJECTED_JOB.name
    assert sent.kwargs == {"job": "7", "reason": "embed is not a dict", "tenant": "t"}


@pytest.mark.parametrize(
    "message",
    [
        refused(job="known"),
        refused(job=["7"]),
        refused(plugin="x"),
        refused(),
        refused(task="stop", job=7),
        refused(task="", job=7),
    ],
)
def test_no_job_is_failed_that_cannot_be_read_or_has_a_run(
    redis: Any, sender: RecordingSender, message: RefusedMessage
) -> None:
    assert keep(None, message)
    assert redis.xlen(DEAD_LETTERS) == 1
    assert sender.sent == []
