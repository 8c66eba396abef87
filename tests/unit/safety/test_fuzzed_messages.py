"""Messages from a hostile publisher: whatever they hold, none is lost and no task fails."""

import json
import os
import unicodedata
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.utils.json import loads

from shared.channels import dead_letters_key
from tests.unit.safety.messages import ANYTHING, messages
from tests.unit.workflow.harness import FakeServices, TaskRunner
from worker.runs.runs import Runs, Timing
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.validation import mistakes, readable_job, readable_tenant

JOBS = st.one_of(st.integers(1, 99), st.integers(1, 99).map(str), ANYTHING)
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def as_delivered(kwargs: dict[str, Any]) -> dict[str, Any]:
    """As a worker gets it: through JSON."""
    delivered: dict[str, Any] = json.loads(json.dumps(kwargs))
    return delivered


@pytest.fixture
def fresh(services: FakeServices) -> Any:
    """The same services on an empty Redis."""

    def refresh() -> FakeServices:
        services.redis = fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
        services.sender.published.clear()
        services.runs = Runs(services.redis, services.sender, Timing(60))
        return services

    return refresh


@FUZZ
@given(kwargs=messages(JOBS, "digits@1.0.0"), task=st.sampled_from(["test.deploy", "stop"]))
def test_a_message_is_accepted_or_rejected(
    task_runner: TaskRunner, fresh: Any, kwargs: dict[str, Any], task: str
) -> None:
    services, message = fresh(), as_delivered(kwargs)

    delivery = task_runner.deliver_all(task, message)

    assert delivery.ended == "acknowledged"
    letters = [letter for _, letter in services.redis.xrange(dead_letters_key())]
    job = readable_job(message)
    if letters:
        # Whole, with a reason that can be reason to anybody, and its job is reason unless it is a stop.
        [letter] = letters
        assert json.dumps(json.loads(letter["body"])[1]) == json.dumps(message)
        assert letter["reason"]
        assert not any(unicodedata.category(character) == "Cc" for character in letter["reason"])
        assert len(letter["reason"]) <= 2000
        reason = [sent.kwargs["job"] for sent in services.sender.of("runs.refuse_job")]
        assert reason == ([job] if job is not None and task == "test.deploy" else [])
        for sent in services.sender.published:
            json.dumps(sent.kwargs).encode()
    else:
        assert job is not None
        assert services.runs.store.exists(job) == (task == "test.deploy")


@FUZZ
@given(
    task=ANYTHING.map(lambda value: value if isinstance(value, str) else repr(value)),
    body=ANYTHING,
    reason=st.text(max_size=50),
    id_=st.none() | st.text(max_size=20),
)
def test_a_letter_is_kept_as_it_came(redis: Any, task: str, body: Any, reason: str, id_: str | None) -> None:
    letters = DeadLetters(redis)
    redis.flushall()
    body = json.loads(json.dumps(body))
    text = body if isinstance(body, str) and not _has_halves(body) else json.dumps(body)

    letters.add(task, text if isinstance(body, str) else body, reason, message_id=id_)
    letters.add(task, text if isinstance(body, str) else body, reason, message_id=id_)

    kept = list(letters.all())
    assert len(kept) == (2 if id_ is None else 1)
    if isinstance(body, str):
        assert kept[0].body == text
    else:
        assert json.dumps(json.loads(kept[0].body)) == json.dumps(body)
    assert letters.get(kept[0].id) == kept[0]


def test_what_celery_reads_as_more_than_json_is_kept_as_it_came(redis: Any) -> None:
    typed = {"__type__": "decimal", "__value__": "1.50"}
    stamp = {"__type__": "datetime", "__value__": "2026-01-02T03:04:05+00:00"}
    read = loads(json.dumps({"price": typed, "since": stamp, "half": "\ud800"}))

    DeadLetters(redis).add("deploy", [[], read], "x")

    [letter] = DeadLetters(redis).all()
    assert json.loads(letter.body)[1] == {"price": typed, "since": stamp, "half": "\ud800"}


def test_two_messages_with_one_id_are_two_letters(redis: Any) -> None:
    letters = DeadLetters(redis)
    letters.add("deploy", [[], {"job": 1}], "x", message_id="the-same")
    letters.add("deploy", [[], {"job": 2}], "x", message_id="the-same")

    assert [json.loads(letter.body)[1] for letter in letters.all()] == [{"job": 1}, {"job": 2}]


def test_more_letters_than_a_page_are_all_listed(redis: Any) -> None:
    letters = DeadLetters(redis)
    for number in range(250):
        letters.add("deploy", [[], {"job": number}], "x")

    assert [json.loads(letter.body)[1]["job"] for letter in letters.all()] == list(range(250))


@FUZZ
@given(value=ANYTHING)
def test_the_reason_of_a_rejection_is_sendable(value: Any) -> None:
    tenant = readable_tenant({"tenant": value})
    assert tenant is None or (tenant.isascii() and tenant.isprintable() and tenant.strip() == tenant)
    job = readable_job({"job": value})
    assert job is None or (job.isascii() and 0 < len(job) <= 100 and job.strip("."))


def test_a_hundred_thousand_mistakes_are_summed_up() -> None:
    from pydantic import ValidationError

    from shared import DeployMessage

    with pytest.raises(ValidationError) as caught:
        DeployMessage.model_validate({f"k{n}" * 50: n for n in range(100_000)})

    reason = mistakes(caught.value)

    assert len(reason) <= 2000
    assert "job: Field required" in reason


def _has_halves(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
