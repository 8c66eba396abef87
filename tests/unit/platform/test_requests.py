"""Requests as values: paths, queries, bodies, and what is rejected before anything is sent."""

import pytest
from structlog.testing import capture_logs

from worker.platform import UntrustedLinkError, ValidationError, requests
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
    "link",
    [
        "http://host/api/tasks/?page=2&a=1&a=",
        "http://HOST:80/api/tasks/?page=2&a=1&a=",
        "/api/tasks/?page=2&a=1&a=",
        "tasks/?page=2&a=1&a=",
        "?page=2&a=1&a=",
    ],
)
def test_a_link_to_the_own_service_is_taken_apart(link: str) -> None:
    with capture_logs() as lines:
        followed = BaseUrl("http://host/api").relative(link, "tasks/")

    assert followed == ("tasks/", (("page", "2"), ("a", "1"), ("a", "")))
    assert lines == []


@pytest.mark.parametrize(
    "link",
    [
        "http://host:80/api/tasks/?page=2",  # https outside of a proxy
        "https://host:8443/api/tasks/?page=2",  # a port inside of it
        "https://public.example/api/tasks/?page=2",
        "https://public.example/platform/api/v2/tasks/?page=2",
        "https://public.example/tasks/?page=2",
        "//public.example/api/tasks/?page=2",
        "http://user@public.example/api/tasks/?page=2",
        "http://host:99999/api/tasks/?page=2",
    ],
)
def test_a_link_with_another_address_is_followed_at_the_base(
    link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_warned", set())
    base = BaseUrl("https://host/api")

    # When it is followed twice
    with capture_logs() as lines:
        followed = [base.relative(link, "tasks/") for _ in range(2)]

    # Then path and query are taken from it, and one warning names the setting to mend
    assert followed == [("tasks/", (("page", "2"),))] * 2
    [line] = lines
    assert line["log_level"] == "warning"
    assert "SYNAPSE_HOST" in line["event"]
    assert "public" not in line["event"]


def test_a_link_to_another_list_of_the_service_is_followed() -> None:
    assert BaseUrl("http://host/api").relative("http://host/api/v2/all/?page=2", "tasks/")[0] == "v2/all/"


@pytest.mark.parametrize(
    "link",
    [
        "http://host/other/",
        "http://evil/",
        "http://host/apitasks/",
        "http://host/api/../other/",
        "http://host/api/../tasks/",
        "http://host/api/%2E%2e/other/",
        "http://host/api/..\\other/",
        "http://host/api/\r\nx/",
        "http://host/api/tasks/?a= b",
        "javascript:x",
        "file:///api/tasks/",
        "http://[bad/",
    ],
)
def test_a_link_that_leads_out_of_the_base_is_rejected(link: str) -> None:
    with pytest.raises(UntrustedLinkError):
        BaseUrl("http://host/api").relative(link, "tasks/")
