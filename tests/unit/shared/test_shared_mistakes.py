"""What whoever published a wrong message reads: words, neither a pattern nor what the message holds."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared import DeployMessage, Message, StopMessage, TailLogsMessage
from worker.workflow.validation import mistakes

DEPLOY: dict[str, Any] = {"job": 1, "plugin": "digits@1.0.0", "agent": 1}


@pytest.mark.parametrize(
    ("model", "message", "said"),
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
def test_a_text_of_the_wrong_form_is_told_what_form_it_must_have(
    model: type[Message], message: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(message)

    assert mistakes(caught.value) == said
    assert "di9its" not in str(caught.value)
