"""The author of a wrong message reads words, neither a pattern nor what the message holds."""

from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import pytest
from pydantic import ValidationError

from shared import DeployMessage, Message, StopMessage, TailLogsMessage
from shared.validation import MAX_MISTAKES, describe_validation_error, json_mistake

DEPLOY: dict[str, Any] = {"job": 1, "plugin": "digits@1.0.0", "agent": 1}


@pytest.mark.parametrize(
    ("model", "message", "description"),
    [
        (
            DeployMessage,
            {**DEPLOY, "plugin": "di9its"},
            "plugin: must be code@version, for example digits@1.0.0",
        ),
        (
            DeployMessage,
            {**DEPLOY, "plugin": "di9its@.."},
            "plugin: must be code@version, for example digits@1.0.0",
        ),
        (
            StopMessage,
            {"job": "di9its/1"},
            "job: must be an id of letters, digits, '_', '-' and '.', for example 42",
        ),
        (
            DeployMessage,
            {**DEPLOY, "tenant": "di9its\n"},
            "tenant: must be printable ASCII without spaces around it",
        ),
        (
            TailLogsMessage,
            {"job": 1, "ray_job": "di9its/1"},
            "ray_job: must be an id of letters, digits, '_' and '-', at most 100",
        ),
    ],
)
def test_text_of_a_wrong_form_is_described_by_what_it_must_be(
    model: type[Message], message: dict[str, Any], description: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(message)

    assert describe_validation_error(caught.value) == description
    assert "di9its" not in str(caught.value)


def test_sentences_say_what_is_missing_and_what_is_wrong() -> None:
    with pytest.raises(ValidationError) as caught:
        DeployMessage.model_validate({"job": 1, "plugin": "a"})

    described = describe_validation_error(caught.value, as_sentences=True)

    assert described == "plugin must be code@version, for example digits@1.0.0; agent is missing"


def test_mistakes_beyond_the_first_are_counted() -> None:
    with pytest.raises(ValidationError) as caught:
        DeployMessage.model_validate({**DEPLOY, **{f"k{n}" * 100: n for n in range(1_000)}})

    described = describe_validation_error(caught.value)

    assert described.count("; ") == MAX_MISTAKES
    assert described.endswith(f"and {1_000 - MAX_MISTAKES} more")
    assert len(described) < MAX_MISTAKES * 200


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ({"annotations": [{"score": 1.0}, {"score": nan}]}, "annotations[1].score is NaN"),
        (nan, "it is NaN"),
        ([1, (2, -inf)], "[1][1] is -Infinity"),
        ({"odd key": {"x": inf}}, "['odd key'].x is Infinity"),
        ({"at": datetime.now(UTC)}, "at is of the type datetime, which JSON does not have"),
        ({"a": {(1, 2): 3}}, "a has a key of the type tuple"),
        ({1: "x", None: [True, 1.5]}, ""),
    ],
)
def test_what_json_cannot_hold_is_named_with_its_place(value: Any, mistake: str) -> None:
    assert json_mistake(value) == mistake
    is_number = not mistake or mistake.endswith(("NaN", "Infinity"))
    assert json_mistake(value, numbers_only=True) == (mistake if is_number else "")


def test_value_without_an_end_is_a_mistake() -> None:
    endless: list[Any] = []
    endless.append(endless)

    assert json_mistake(endless).endswith("… is nested too deeply")
