"""Requests as values: paths, queries, bodies, and what is refused before anything is sent."""

import pytest

from worker.platform import ValidationError, agent, backend
from worker.platform.requests import Request, encode_body, encode_query


def test_a_list_is_a_repeated_key_and_a_boolean_a_word() -> None:
    assert encode_query({"a": [1, "x"], "b": True, "c": False, "d": None, "e": 1.5}) == (
        ("a", "1"),
        ("a", "x"),
        ("b", "true"),
        ("c", "false"),
        ("e", "1.5"),
    )


def test_a_filter_that_no_query_can_hold_is_refused() -> None:
    with pytest.raises(ValidationError, match="the filter a"):
        encode_query({"a": {"b": 1}})


def test_a_run_s_filters_cannot_override_what_the_worker_decides() -> None:
    filters = {"fields": "data", "project": 9, "page_size": 1, "page": 7, "status": "new"}

    assert dict(backend.list_tasks(filters, 3, 500).query) == {
        "status": "new",
        "fields": "id",
        "project": "3",
        "page_size": "500",
    }


def test_the_schema_is_sent_only_when_any_is_asked_for() -> None:
    assert backend.annotation_request(1, {}, "any").query == (("schema", "any"),)
    assert backend.annotation_request(1, {}, "dm_schema_v1").query == ()
    assert backend.annotation_request(1, {}, None).query == ()


def test_ids_are_quoted() -> None:
    assert backend.get_plugin_release("a@1.0+x").path == "plugin_releases/a%401.0%2Bx/"
    assert agent.get_serve_application("a@1.0").path == "serve_applications/a%401.0/"


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "a/b", "a b", "ä", "a?b", "a\n", "x" * 101, "a@b", 5.0, True, None]
)
def test_an_id_that_cannot_be_one_is_refused(bad: object) -> None:
    with pytest.raises(ValidationError) as caught:
        agent.get_job(bad)  # type: ignore[arg-type]

    assert caught.value.status == 400


@pytest.mark.parametrize("bad", ["", ".", "..", "...", "a/b", "a%2fb", "x" * 101])
def test_an_application_name_that_cannot_be_one_is_refused(bad: str) -> None:
    with pytest.raises(ValidationError):
        agent.get_serve_application(bad)


@pytest.mark.parametrize("bad", ["", "..", "1/2", "-1", "1?x", "one"])
def test_a_number_that_cannot_be_one_is_refused(bad: str) -> None:
    with pytest.raises(ValidationError):
        backend.task_request(bad)


def test_what_is_not_declared_is_left_out_of_a_plugin_s_run() -> None:
    request = backend.plugin_run_request(
        "a", {"agent": 1, "action": "deployment", "params": {"x": None}, "version": None}
    )

    assert request.json == {"agent": 1, "action": "deployment", "params": {"x": None}}


def test_keys_that_the_backend_would_refuse_are_refused_here() -> None:
    with pytest.raises(ValidationError, match="unknown keys extra"):
        backend.plugin_run_request("a", {"agent": 1, "extra": 2})
    with pytest.raises(ValidationError, match="unknown keys progress"):
        backend.update_job(1, {"progress": {}})


@pytest.mark.parametrize(
    ("request_", "repeatable"),
    [
        (backend.get_project(1), True),
        (backend.annotation_request(1, {}, None), True),
        (backend.update_job(1, {"status": "RUNNING"}), True),
        (backend.plugin_run_request("a", {"action": "inference"}), False),
        (backend.plugin_run_request("a", {"action": "deployment"}), False),
        (backend.create_serve_application(1, None, None), False),
        (backend.create_logs([]), False),
        (agent.check_feasibility({}), False),
        (agent.stop_job("a"), False),
        (agent.delete_serve_application("a"), False),
        (agent.list_jobs(), True),
    ],
)
def test_only_what_is_harmless_twice_may_be_repeated(request_: Request, repeatable: bool) -> None:
    assert request_.retryable is repeatable


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800", object()])
def test_a_body_that_json_cannot_hold_is_refused_without_a_trace_of_it(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        encode_body(Request("POST", "x/", json={"a": value}))

    assert caught.value.__context__ is None


def test_a_request_does_not_show_what_it_carries() -> None:
    assert "private" not in repr(Request("POST", "x/", (("q", "private"),), {"a": "private"}))
