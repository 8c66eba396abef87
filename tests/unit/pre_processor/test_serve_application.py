"""What records of applications mean."""

from collections.abc import Iterator
from typing import Any

import pytest

from worker.platform import NotFoundError
from worker.pre_processor import classify_serve_app, counts_as_failed
from worker.pre_processor.serve_application import (
    PreProcessor,
    exclude_other_releases,
    list_recent_records,
    list_records,
)
from worker.testing import FakeBackend


def records(*statuses: str) -> list[dict[str, Any]]:
    return [{"id": number, "status": status} for number, status in enumerate(statuses)]


@pytest.mark.parametrize(
    ("statuses", "bucket"),
    [
        (["RUNNING"], ("running", None)),
        (["DEPLOY_FAILED"], ("failed", "DEPLOY_FAILED")),
        (["UNHEALTHY"], ("failed", "UNHEALTHY")),
        (["UNAVAILABLE"], ("failed", "UNAVAILABLE")),
        (["NOT_STARTED"], ("pending", None)),
        (["DEPLOYING"], ("pending", None)),
        (["DELETING"], ("pending", None)),
        ([], ("pending", None)),
        (["UNHEALTHY", "RUNNING"], ("running", None)),
        (["DEPLOYING", "DEPLOY_FAILED", "UNHEALTHY"], ("failed", "DEPLOY_FAILED")),
        (["A_NEW_WORD"], ("pending", None)),
    ],
)
def test_seven_statuses_fall_into_three_buckets(statuses: list[str], bucket: tuple[str, str | None]) -> None:
    assert classify_serve_app(records(*statuses)) == bucket
    assert classify_serve_app({"results": records(*statuses)}) == bucket


@pytest.mark.parametrize(
    "malformed",
    [
        None,
        "RUNNING",
        7,
        {},
        {"results": None},
        [None],
        ["RUNNING"],
        [{"status": None}],
        [{"status": {}}],
        [[]],
    ],
)
def test_what_cannot_be_read_is_pending(malformed: object) -> None:
    assert classify_serve_app(malformed) == ("pending", None)


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (None, True),
        ({}, True),
        ("digits@2.0.0", True),
        ({"version": "1.0.0"}, True),
        ({"version": "2.0.0"}, False),
        ({"name": "digits@1.0.0"}, True),
        ({"name": "digits@2.0.0"}, False),
        ({"name": "a name of the author's"}, True),
        ({"name": "letters@2.0.0"}, True),
        ({"version": None}, True),
    ],
)
def test_records_of_another_release_do_not_count(data: object, counts: bool) -> None:
    assert (
        bool(exclude_other_releases([{"id": 1, "status": "RUNNING", "data": data}], "digits", "1.0.0"))
        is counts
    )


def test_an_old_failure_does_not_count_against_a_new_start() -> None:
    snapshot = {"1": "DEPLOY_FAILED"}
    assert not counts_as_failed({"id": 1, "status": "DEPLOY_FAILED", "job": 5}, "9", snapshot)
    assert counts_as_failed({"id": 1, "status": "UNHEALTHY", "job": 5}, "9", snapshot)
    assert counts_as_failed({"id": 1, "status": "DEPLOY_FAILED", "job": 9}, "9", snapshot)
    assert counts_as_failed({"id": 2, "status": "DEPLOY_FAILED", "job": 5}, "9", snapshot)


def test_records_are_asked_for_by_plugin_and_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    backend.add_application(data={"version": "2.0.0"})
    backend.add_application(id=2)
    queries: list[dict[str, Any]] = []
    answer = backend.serve_application_pages

    def listed(**query: Any) -> Iterator[dict[str, Any]]:
        queries.append(query)
        return answer(**query)

    monkeypatch.setattr(backend, "serve_application_pages", listed)
    found = list_records(backend, PreProcessor("digits", "1.0.0", {}, 1))
    assert queries == [{"plugin_code": "digits", "job__agent": 1}]
    assert [record["id"] for record in found] == [2]


def with_history(records: int) -> FakeBackend:
    """A backend with records of deployments that failed long ago."""
    backend = FakeBackend()
    for number in range(records):
        backend.add_application("DEPLOY_FAILED", id=number, job=number)
    return backend


def looks_at(backend: FakeBackend) -> int:
    return backend.faults.calls["list_serve_applications"]


TARGET = PreProcessor("digits", "1.0.0", {}, 1)


@pytest.mark.parametrize("read", [list_records, lambda *args: list_recent_records(*args, "7", 0)])
def test_reading_stops_at_the_page_with_a_running_record(read: Any) -> None:
    backend = with_history(1_000)
    backend.serve_applications[5]["status"] = "RUNNING"
    assert classify_serve_app(read(backend, TARGET))[0] == "running"
    assert looks_at(backend) == 1


@pytest.mark.parametrize("records", [1_000, 5_000])
def test_a_poll_reads_no_history(records: int) -> None:
    backend = with_history(records)
    assert classify_serve_app(list_recent_records(backend, TARGET, "7", 0))[0] == "failed"
    assert looks_at(backend) == 4


@pytest.mark.parametrize("at", [0, 99, 100, 450, 901, 999])
def test_polls_find_a_record_that_runs_again_wherever_it_is(at: int) -> None:
    # Given ten pages of records, of which one runs again
    backend = with_history(1_000)
    backend.serve_applications[at]["status"] = "RUNNING"

    # Then it is seen within as many polls
    seen = [classify_serve_app(list_recent_records(backend, TARGET, "7", poll))[0] for poll in range(8)]
    assert "running" in seen


def test_a_history_that_becomes_shorter_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = with_history(1_000)
    answer = backend.serve_application_pages

    def pages(**query: Any) -> Iterator[dict[str, Any]]:
        if query.get("page"):
            raise NotFoundError
        return answer(**query)

    monkeypatch.setattr(backend, "serve_application_pages", pages)
    assert len(list_recent_records(backend, TARGET, None, 0)) == 100
