"""A backend and agents that mean harm: the run ends with a clear error, and no token goes anywhere else."""

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.integration.safety.proxy import Answer, Proxy, Received
from tests.integration.safety.site import Site

MB = 1024 * 1024


@pytest.fixture
def elsewhere() -> Iterator[Proxy]:
    """Another host, by its port, that a hostile answer leads to."""
    other = Proxy("http://127.0.0.1:1")
    with other.spoilt("GET", "/", Answer(200, json.dumps({"results": [{"id": 1}]}).encode())):
        yield other
    other.close()


def page(link: str) -> Answer:
    return Answer(200, json.dumps({"results": [{"id": 1}], "next": link}).encode())


@pytest.mark.parametrize(
    ("link", "error"),
    [
        ("{elsewhere}/sdk/tasks/?page=2", "a link leads to another server"),
        ("//127.0.0.1:1/sdk/tasks/?page=2", "a link leads to another server"),
        ("{own}@127.0.0.1:1/sdk/tasks/", "a link leads to another server"),
        ("file:///etc/passwd", "a link leads to another server"),
        ("{own}/sdk/../agents/?page=2", "a link leads out of the base URL"),
        ("{own}/sdk/tasks/?page=1&x={{}}%s", "its pages go around in a circle"),
    ],
)
def test_a_next_link_is_followed_at_home_only(site: Site, elsewhere: Proxy, link: str, error: str) -> None:
    # Given a list whose next page is elsewhere
    project = site.project(1)
    following = link.format(elsewhere=elsewhere.url, own=site.proxy.url)
    before = len(site.proxy.received)
    with site.proxy.spoilt("GET", rf"/sdk/tasks/\?.*(project={project.id}(&|$)|x=)", page(following)):
        # When a run asks for it
        end = site.end_of(site.to_task(project))

    # Then the run ends with a clear error, and nobody else was asked anything
    assert end["status"] == "FAILED"
    assert error in end["result"]["error"]
    assert elsewhere.received == []
    assert not [each for each in site.proxy.received[before:] if each.path.startswith("/agents")]


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize(("method", "path"), [("GET", "/projects/{}/"), ("PUT", "/tasks/{}/annotate")])
def test_a_redirect_is_not_followed(
    site: Site, elsewhere: Proxy, status: int, method: str, path: str
) -> None:
    # Given a backend that sends callers elsewhere
    project = site.project(1)
    where = path.format(project.id if "projects" in path else project.tasks[0])
    answer = Answer(status, b"", {"Location": f"{elsewhere.url}/x/"})
    with site.proxy.spoilt(method, where, answer):
        end = site.end_of(site.to_task(project))

    # Then the run ends, and elsewhere nobody has heard of it
    assert end["status"] == "FAILED"
    assert "redirects are not followed" in json.dumps(end["result"])
    assert elsewhere.received == []


@pytest.mark.parametrize(
    "answer",
    [Answer(200, b" " * MB, length=100 * MB), Answer(200, b" " * MB, endless=True)],
    ids=["100 MB", "endless"],
)
def test_an_answer_without_a_limit_is_rejected(site: Site, answer: Answer) -> None:
    # Given answers of 100 MB, or without an end, to every look at one project
    project, worker = site.project(1), site.worker
    assert worker is not None
    asked: list[Received] = []

    def flood(request: Received) -> Answer:
        asked.append(request)
        return answer

    with site.proxy.spoilt("GET", f"/projects/{project.id}/", flood):
        # When a run meets them twice
        job = site.to_task(project)
        site.wait(lambda: len(asked) > 1, "a second look")
        memory = psutil.Process(worker.pid).memory_info().rss

        # Then meanwhile another run is not kept waiting, and the worker does not swallow it all
        other = site.project(3)
        assert site.end_of(site.to_task(other), 5)["status"] == "SUCCEEDED"
        assert psutil.Process(worker.pid).memory_info().rss < memory + 100 * MB
        assert "larger than 16 MB" in site.log()
    # And once the backend answers as it should, the run succeeds
    assert site.end_of(job)["status"] == "SUCCEEDED"


@pytest.mark.parametrize("text", ["{}", "{reasons}", "%s %d %(x)s", "[/b]", "\\x1b[2J", "$(x)"])
def test_what_looks_like_a_format_is_only_text(site: Site, text: str) -> None:
    # Given names that somebody might format
    project = site.project(2)
    params: dict[str, Any] = {"name": text, "description": text, "task_filters": {text: text}}

    # When one run uses them well, another asks for a specification of that name
    good = site.end_of(site.to_task(project, **params))
    bad = site.end_of(site.to_task(project, **{**params, "target_specification_name": text}))

    # Then they are text
    assert good["status"] == "SUCCEEDED"
    assert f"has no file specification {text!r}" in bad["result"]["error"]
