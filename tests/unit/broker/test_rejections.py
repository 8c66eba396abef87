"""What is kept of a rejected message, by whom, and what becomes of its job."""

import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from shared.channels import dead_letters_key
from shared.messages import DeployMessage
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.broker.task_messages import HEADERS, message
from worker.broker.rejections import (
    RejectedMessage,
    keep_rejected,
    may_be_of_newer_worker,
    message_rejected,
    rejected_element,
    rejected_message,
    step_unknown,
)
from worker.runs.runs import Runs, Timing
from worker.workflow import rejected_jobs


def test_message_is_kept_with_its_arguments() -> None:
    body = [[], {"job": "7", "x": "é"}, {}]
    kept = rejected_message(message(body), "why")
    assert kept == RejectedMessage("deploy", json.dumps(body), "why", "1", {"job": "7", "x": "é"})


def test_values_that_kombu_marks_are_read() -> None:
    body = json.dumps([[3], {"job": {"__type__": "uuid", "__value__": {"hex": UUID(int=7).hex}}}, {}])
    kept = rejected_message(message(body), "why")
    assert (kept.args, kept.kwargs) == ((3,), {"job": UUID(int=7)})

    unknown = json.dumps([[], {"job": 7, "x": {"__type__": "orange", "__value__": 1}}, {}])
    kwargs = rejected_message(message(unknown), "why").kwargs
    assert kwargs is not None
    assert kwargs["job"] == 7


def test_malformed_element_is_kept_whole() -> None:
    body = base64.b64encode(json.dumps([[], {"job": 7}, {}]).encode()).decode()
    element = json.dumps({"headers": HEADERS, "body": body, "properties": None})
    kept = rejected_element(element.encode(), "why")
    assert kept == RejectedMessage("deploy", element, "why", "1", {"job": 7})

    for raw in (b"no JSON", b"[1]", b"5", b"[" * 100_000):
        assert rejected_element(raw, "why") == RejectedMessage("", raw.decode(), "why")
    binary = rejected_element(b"\xff\x00", "why").body
    assert base64.b64decode(binary.removeprefix("base64:")) == b"\xff\x00"


def test_message_is_kept_only_when_every_receiver_kept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_rejected, "receivers", [])
    rejected = RejectedMessage("t", "b", "why")
    taken: list[RejectedMessage] = []

    def takes(rejected: RejectedMessage, **_: Any) -> None:
        taken.append(rejected)

    def fails(**_: Any) -> None:
        raise ConnectionError

    assert not keep_rejected(None, rejected), "nobody is there"
    message_rejected.connect(takes)
    assert keep_rejected(None, rejected)
    message_rejected.connect(fails)
    assert not keep_rejected(None, rejected)
    assert taken == [rejected, rejected]


@pytest.fixture
def sender(redis: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingPublisher]:
    """What the app publishes once it has connected the rejections of the broker."""
    sender = RecordingPublisher()
    runs = Runs(redis, sender, Timing(60.0))
    known = {"job": "known", "plugin": "digits@1.0.0", "agent": 1}
    runs.store.accept(DeployMessage.model_validate(known), "deploy")
    monkeypatch.setattr(rejected_jobs, "services", lambda: SimpleNamespace(redis=redis, runs=runs))
    message_rejected.connect(rejected_jobs.reject_undelivered)
    yield sender
    message_rejected.disconnect(rejected_jobs.reject_undelivered)


def rejected(task: str = "deploy", **kwargs: Any) -> RejectedMessage:
    return RejectedMessage(task, json.dumps([[], kwargs, None]), "embed is not a dict", None, kwargs or None)


def test_job_of_a_rejected_message_fails_with_the_reason(redis: Any, sender: RecordingPublisher) -> None:
    message = rejected(job=7, tenant="t")
    assert keep_rejected(None, message)
    ((_, letter),) = redis.xrange(dead_letters_key())
    assert (letter["task"], letter["body"], letter["reason"]) == ("deploy", message.body, message.reason)
    (sent,) = sender.published
    assert sent.name == rejected_jobs.END_REJECTED_JOB.name
    assert sent.kwargs == {"job": "7", "reason": "embed is not a dict", "tenant": "t"}


@pytest.mark.parametrize(
    "message",
    [
        rejected(job="known"),
        rejected(job=["7"]),
        rejected(plugin="x"),
        rejected(),
        rejected(task="stop", job=7),
        rejected(task="", job=7),
    ],
)
def test_job_that_is_unreadable_or_has_a_run_does_not_fail(
    redis: Any, sender: RecordingPublisher, message: RejectedMessage
) -> None:
    assert keep_rejected(None, message)
    assert redis.xlen(dead_letters_key()) == 1
    assert sender.published == []


@pytest.mark.parametrize(
    ("answer", "is_left"), [(0.0, True), (86_399.0, True), (86_401.0, False), (ConnectionError(), True)]
)
def test_unknown_step_is_left_to_newer_workers_for_a_day(
    monkeypatch: pytest.MonkeyPatch, answer: float | Exception, is_left: bool
) -> None:
    monkeypatch.setattr(step_unknown, "receivers", [])

    def seconds(message_id: str, **_: Any) -> float:
        assert message_id == "m1"
        if isinstance(answer, Exception):
            raise answer
        return answer

    step_unknown.connect(seconds, weak=False)

    assert may_be_of_newer_worker(None, "m1") is is_left


def test_unknown_step_without_an_id_is_left_to_nobody() -> None:
    assert not may_be_of_newer_worker(None, None)


@pytest.mark.parametrize("kwargs", [None, [], "x"])
def test_message_whose_arguments_by_name_are_none_is_kept(
    redis: Any, sender: RecordingPublisher, kwargs: object
) -> None:
    kept = keep_rejected(None, rejected_message(message([[42], kwargs, {}]), "kwargs is not a dict"))

    assert kept
    assert len(redis.xrange(dead_letters_key())) == 1
    assert [each.kwargs["job"] for each in sender.published] == ["42"]


def test_job_of_a_message_sent_as_one_object_has_its_tenant(sender: RecordingPublisher) -> None:
    keep_rejected(None, rejected_message(message([[{"job": 7, "tenant": "t"}], {}, {}]), "why"))

    assert [each.kwargs["tenant"] for each in sender.published] == ["t"]
