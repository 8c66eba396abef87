"""Requests as values: paths, queries, bodies, and what is rejected before anything is sent."""

import pytest

from worker.platform import MalformedResponseError, ValidationError
from worker.platform.requests import BaseUrl, Request, encode_body, encode_query


def test_a_list_is_a_repeated_key_and_a_boolean_a_word() -> None:
    assert encode_query({"a": [1, "x"], "b": True, "c": False, "d": None, "e": 1.5}) == (
        ("a", "1"),
        ("a", "x"),
        ("b", "true"),
        ("c", "false"),
        ("e", "1.5"),
    )


def test_a_filter_that_no_query_can_hold_is_rejected() -> None:
    with pytest.raises(ValidationError, match="the filter a"):
        encode_query({"a": {"b": 1}})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800", object()])
def test_a_body_that_json_cannot_hold_is_rejected_unseen(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        encode_body(Request("POST", "x/", json={"a": value}))

    assert caught.value.__context__ is None


def test_a_request_does_not_show_what_it_carries() -> None:
    assert "private" not in repr(Request("POST", "x/", (("q", "private"),), {"a": "private"}))


@pytest.mark.parametrize(
    ("base", "whole"),
    [
        ("http://h", "http://h/jobs/1/?a=b+c"),
        ("http://h/", "http://h/jobs/1/?a=b+c"),
        ("https://h:8443/api/v1/", "https://h:8443/api/v1/jobs/1/?a=b+c"),
    ],
)
def test_a_path_is_joined_to_the_base(base: str, whole: str) -> None:
    assert BaseUrl(base).join("jobs/1/", (("a", "b c"),)) == whole


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "h",
        "ftp://h",
        "http://",
        "http://u:secret@h",
        "http://h?x=1",
        "http://h#x",
        "http://h:x",
        "http://a b/",
    ],
)
def test_a_base_that_is_none_is_rejected_without_showing_it(bad: str) -> None:
    with pytest.raises(ValueError) as caught:
        BaseUrl(bad)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "link", ["http://host/api/tasks/?page=2&a=1&a=", "http://HOST:80/api/tasks/?page=2&a=1&a="]
)
def test_a_link_to_the_own_service_is_taken_apart(link: str) -> None:
    assert BaseUrl("http://host/api").relative(link) == ("tasks/", (("page", "2"), ("a", "1"), ("a", "")))


@pytest.mark.parametrize(
    "link",
    [
        "http://evil/api/tasks/?page=2",
        "https://host/api/tasks/",
        "http://host:81/api/tasks/",
        "http://host.evil/api/tasks/",
        "http://host@evil/api/tasks/",
        "http://evil@host/api/tasks/",
        "http://host\\@evil/api/tasks/",
        "//evil/api/tasks/",
        "/api/tasks/",
        "http://host/other/",
        "http://host/apitasks/",
        "http://host/api/../other/",
        "http://host/api/%2E%2e/other/",
        "http://host/api/..\\other/",
        "http://host/api/\r\nx/",
        "javascript:x",
        "http://[bad/",
        "http://host:99999/",
    ],
)
def test_a_link_that_leads_away_is_rejected(link: str) -> None:
    with pytest.raises(MalformedResponseError):
        BaseUrl("http://host/api").relative(link)
