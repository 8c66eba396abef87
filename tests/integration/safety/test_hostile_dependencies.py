"""A hostile backend: the run ends with a clear error, and no other server receives a request or a token."""

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.recording_proxy import RecordingProxy, Request, Response
from worker.sandbox.seed import SeededProject

MB = 1024 * 1024


@pytest.fixture
def other_server() -> Iterator[RecordingProxy]:
    """Another server, to which hostile links and redirects lead."""
    server = RecordingProxy("http://127.0.0.1:1")
    with server.intercept("GET", "/", Response(200, json.dumps({"results": [{"id": 1}]}).encode())):
        yield server
    server.close()


def page(link: str) -> Response:
    return Response(200, json.dumps({"results": [{"id": 1}], "next": link}).encode())


@pytest.mark.parametrize(
    ("link", "error"),
    [
        # Followed on the own server, where it leads to itself.
        ("{other_server}/sdk/tasks/?x=2", "its pages go around in a circle"),
        ("//127.0.0.1:1/sdk/tasks/?x=2", "its pages go around in a circle"),
        ("{own}@127.0.0.1:1/sdk/tasks/?x=2", "its pages go around in a circle"),
        ("file:///etc/passwd", "a link is no HTTP address"),
        ("{own}/sdk/../agents/?page=2", "a link leads out of the base URL"),
        ("{own}/sdk/tasks/?page=1&x={{}}%s", "its pages go around in a circle"),
    ],
)
def test_a_next_link_is_followed_on_the_same_server_only(
    harness: ProxiedHarness, other_server: RecordingProxy, link: str, error: str
) -> None:
    # Given a list whose next page has a hostile link
    project = harness.new_project(1)
    following = link.format(other_server=other_server.url, own=harness.proxy.url)
    before = len(harness.proxy.received)
    with harness.proxy.intercept("GET", rf"/sdk/tasks/\?.*(project={project.id}(&|$)|x=)", page(following)):
        # When a run reads the list
        end = harness.wait_for_end(harness.to_task(project))

    # Then the run fails with a clear error, and no other server or path is requested
    assert end["status"] == "FAILED"
    assert error in end["result"]["error"]
    assert other_server.received == []
    assert not [each for each in harness.proxy.received[before:] if each.path.startswith("/agents/?page")]


def redirection(
    project: SeededProject, path: str, status: int, other_server: RecordingProxy
) -> tuple[str, Response]:
    """The path for this project or its task, and the response that redirects from there."""
    redirect = Response(status, b"", {"Location": f"{other_server.url}/x/"})
    return path.format(project.id if "projects" in path else project.tasks[0]), redirect


REDIRECTED = pytest.mark.parametrize(
    ("method", "path"), [("GET", "/projects/{}/"), ("PUT", "/tasks/{}/annotate")]
)


@pytest.mark.parametrize("status", [301, 308])
@REDIRECTED
def test_a_permanent_redirect_is_not_followed(
    harness: ProxiedHarness, other_server: RecordingProxy, status: int, method: str, path: str
) -> None:
    # Given a backend that redirects to another server for good
    project = harness.new_project(1)
    redirected_path, redirect = redirection(project, path, status, other_server)
    with harness.proxy.intercept(method, redirected_path, redirect):
        end = harness.wait_for_end(harness.to_task(project))

    # Then the run fails, and the other server receives no request
    assert end["status"] == "FAILED"
    assert "redirects are not followed" in json.dumps(end["result"])
    assert other_server.received == []


@pytest.mark.parametrize("status", [302, 307])
@REDIRECTED
def test_a_temporary_redirect_is_not_followed(
    harness: ProxiedHarness, other_server: RecordingProxy, status: int, method: str, path: str
) -> None:
    # Given a backend that redirects to another server for now, such as to a login or a page about maintenance
    project = harness.new_project(1)
    redirected_path, redirect = redirection(project, path, status, other_server)
    with harness.proxy.intercept(method, redirected_path, redirect):
        job = harness.to_task(project)
        harness.wait_for(lambda: len(harness.proxy.requests(method, redirected_path)) > 1, "a second attempt")
        assert not harness.job(job)["result"]

    # Then the other server receives no request, and the run succeeds when the backend answers itself
    end = harness.wait_for_end(job)
    assert (end["status"], end["result"]["success_count"]) == ("SUCCEEDED", 1)
    assert other_server.received == []


@pytest.mark.parametrize(
    "response",
    [Response(200, b" " * MB, length=100 * MB), Response(200, b" " * MB, endless=True)],
    ids=["100 MB", "endless"],
)
def test_an_unlimited_response_is_rejected(harness: ProxiedHarness, response: Response) -> None:
    # Given responses of 100 MB, or without an end, to every request for one project
    project, worker = harness.new_project(1), harness.worker
    assert worker is not None
    requests: list[Request] = []

    def respond(request: Request) -> Response:
        requests.append(request)
        return response

    with harness.proxy.intercept("GET", f"/projects/{project.id}/", respond):
        # When a run has retried its request
        job = harness.to_task(project)
        harness.wait_for(lambda: len(requests) > 1, "a second request")
        memory = psutil.Process(worker.pid).memory_info().rss

        # Then another run is not delayed, and the worker does not keep the responses in memory
        other = harness.new_project(3)
        assert harness.wait_for_end(harness.to_task(other), 5)["status"] == "SUCCEEDED"
        assert psutil.Process(worker.pid).memory_info().rss < memory + 100 * MB
        assert "larger than 16 MB" in harness.worker_log()
    # And when the backend's responses are well again, the run succeeds
    assert harness.wait_for_end(job)["status"] == "SUCCEEDED"


@pytest.mark.parametrize("text", ["{}", "{reasons}", "%s %d %(x)s", "[/b]", "\\x1b[2J", "$(x)"])
def test_format_directives_in_messages_are_plain_text(harness: ProxiedHarness, text: str) -> None:
    # Given parameters that look like format strings, markup or escape sequences
    project = harness.new_project(2)
    params: dict[str, Any] = {"name": text, "description": text, "task_filters": {text: text}}

    # When one run only carries them, and another needs a file specification of that name
    good = harness.wait_for_end(harness.to_task(project, **params))
    bad = harness.wait_for_end(harness.to_task(project, **{**params, "target_specification_name": text}))

    # Then they are plain text
    assert good["status"] == "SUCCEEDED"
    assert f"has no file specification {text!r}" in bad["result"]["error"]
