"""What a step's message may carry follows from the step's signature."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from shared.messages import Job
from worker.blame import RejectedMessageError
from worker.pre_processor.waitlist import WaitlistKey
from worker.workflow.validation import Count, arguments_of, parse_message, readable_job


def chunk_step(job: Job, chunk: Count, **_: Any) -> None: ...


def poll(room: WaitlistKey, generation: int, attempt: int = 0) -> None: ...


def task_runner(*args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("step", "kwargs"),
    [
        (chunk_step, {"job": "1", "chunk": 0}),
        (chunk_step, {"job": "1", "chunk": 0, "generation": 3, "attempt": 1, "redelivered": True, "new": []}),
        (poll, {"room": ":1:digits@1.0.0", "generation": 1}),
    ],
)
def test_the_arguments_of_a_step_are_taken(step: Any, kwargs: dict[str, Any]) -> None:
    model = arguments_of(step)
    assert model is not None
    parse_message(model, (), kwargs)


@pytest.mark.parametrize(
    ("step", "kwargs", "reason"),
    [
        (chunk_step, {"job": "1"}, "chunk: Field required"),
        (chunk_step, {"job": "a/b", "chunk": 0}, "job: "),
        (chunk_step, {"job": "1", "chunk": "0"}, "chunk: Input should be a valid integer"),
        (chunk_step, {"job": "1", "chunk": -1}, "chunk: "),
        (chunk_step, {"job": "1", "chunk": 0, "generation": "3"}, "generation: "),
        (chunk_step, {"job": "1", "chunk": 0, "redelivered": 1}, "redelivered: "),
        (poll, {"room": "digits", "generation": 1}, "room: "),
        (poll, {"room": ":1:digits@1.0.0", "generation": 1, "job": "1"}, "job: Extra inputs"),
    ],
)
def test_other_arguments_are_rejected_without_showing_them(
    step: Any, kwargs: dict[str, Any], reason: str
) -> None:
    model = arguments_of(step)
    assert model is not None
    with pytest.raises(RejectedMessageError, match=reason) as caught:
        parse_message(model, (), kwargs)
    assert "a/b" not in str(caught.value)


def test_arguments_without_names_are_rejected() -> None:
    model = arguments_of(chunk_step)
    assert model is not None
    with pytest.raises(RejectedMessageError, match="by name"):
        parse_message(model, ("1", 0), {})


def test_an_entry_task_accepts_any_arguments() -> None:
    assert arguments_of(task_runner) is None


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {"job": "7", "plugin": 1}),
        ((), {"job": " 7\n"}),
        ((), {"job": 7.0}),
        ((), {"job": b"7"}),
        ((), {"job": Decimal(7)}),
        ((7, "digits@1.0.0"), {}),
        (({"job": 7, "plugin": "digits@1.0.0"},), {}),
    ],
)
def test_job_of_a_wrong_message_is_read_in_whatever_form(args: Any, kwargs: Any) -> None:
    assert readable_job(kwargs, args) == "7"


def test_uuid_is_read_as_its_text() -> None:
    assert readable_job({"job": UUID(int=7)}) == str(UUID(int=7))


@pytest.mark.parametrize("job", [{"a": 1}, [7], "a b", 7.5, True, None, "x" * 101])
def test_what_is_no_job_is_not_read_as_one(job: Any) -> None:
    assert readable_job({"job": job}) is None
