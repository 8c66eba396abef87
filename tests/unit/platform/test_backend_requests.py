"""Requests that both clients of the backend share."""

import pytest

from worker.platform import ValidationError
from worker.platform.backend_requests import annotation_request, plugin_run_request, task_request
from worker.platform.requests import Request


def test_the_schema_is_sent_only_when_any_is_asked_for() -> None:
    assert annotation_request(1, {}, "any").query == (("schema", "any"),)
    assert annotation_request(1, {}, "dm_schema_v1").query == ()
    assert annotation_request(1, {}, None).query == ()


@pytest.mark.parametrize("bad", ["", "..", "1/2", "-1", "1?x", "one"])
def test_a_number_that_cannot_be_one_is_rejected(bad: str) -> None:
    with pytest.raises(ValidationError):
        task_request(bad)


def test_what_is_not_declared_is_left_out_of_a_plugin_s_run() -> None:
    request = plugin_run_request(
        "a", {"agent": 1, "action": "deployment", "params": {"x": None}, "version": None}
    )

    assert request.json == {"agent": 1, "action": "deployment", "params": {"x": None}}


def test_a_plugin_run_with_an_unknown_key_is_rejected() -> None:
    with pytest.raises(ValidationError, match="unknown keys extra"):
        plugin_run_request("a", {"agent": 1, "extra": 2})


@pytest.mark.parametrize(
    ("request_", "retryable"),
    [
        (task_request(1), True),
        (annotation_request(1, {}, None), True),
        (plugin_run_request("a", {"action": "inference"}), False),
        (plugin_run_request("a", {"action": "deployment"}), False),
    ],
)
def test_only_what_is_harmless_twice_is_retryable(request_: Request, retryable: bool) -> None:
    assert request_.retryable is retryable


def test_ids_are_quoted() -> None:
    assert plugin_run_request("a@1.0+x", {}).path == "plugins/a%401.0%2Bx/run/"
