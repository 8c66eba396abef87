"""The fence around a service's address."""

import pytest

from worker.platform import MalformedResponseError
from worker.platform.requests import BaseUrl


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
def test_a_base_that_is_none_is_refused_without_showing_it(bad: str) -> None:
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
def test_a_link_that_leads_away_is_refused(link: str) -> None:
    with pytest.raises(MalformedResponseError):
        BaseUrl("http://host/api").relative(link)
