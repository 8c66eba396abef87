"""Which requests the page answers."""

import time
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.unit.console.browser import Browser
from worker.console import sessions
from worker.console.access import ACTION_HEADER, Guard
from worker.console.sessions import SESSION_COOKIE, SESSION_SECONDS, Sessions

TOKEN = "a-token-of-some-length"
ACTION = {ACTION_HEADER: "1"}

NewClient = Callable[..., Browser]


@pytest.fixture
def new_client() -> NewClient:
    """Makes a browser on a guarded application whose pages all answer `done`."""

    async def done(_: Request) -> Response:
        return PlainTextResponse("done")

    def make(token: str | None = None, host: str = "127.0.0.1:8365", hosts: tuple[str, ...] = ()) -> Browser:
        routes = [
            Route(path, done, methods=["GET", "POST"]) for path in ("/", "/login", "/live", "/api/stop")
        ]
        guarded = Guard(Starlette(routes=routes), Sessions(token), hosts)
        return Browser(guarded)

    return make


def test_page_is_open_on_loopback_without_a_token(new_client: NewClient) -> None:
    assert new_client().get("/").text == "done"


def test_token_is_asked_for(new_client: NewClient) -> None:
    # Given a page with a token
    client = new_client(TOKEN)

    # Then a browser is led to the form, and a program gets a 401
    assert client.get("/").headers["location"] == "/login"
    assert client.get("/api/stop").status_code == 401
    assert client.get("/login").text == "done"


@pytest.mark.parametrize("given", ["", "wrong", TOKEN[:-1], TOKEN + "x", "tökén"])
def test_wrong_token_is_rejected(new_client: NewClient, given: str) -> None:
    headers = {"Authorization": f"Bearer {given}".encode()}

    assert new_client(TOKEN).get("/api/stop", headers=headers).status_code == 401


def test_bearer_token_is_accepted(new_client: NewClient) -> None:
    assert new_client(TOKEN).get("/api/stop", headers={"Authorization": f"Bearer {TOKEN}"}).text == "done"


def test_token_in_the_address_is_not_looked_at(new_client: NewClient) -> None:
    assert new_client(TOKEN).get(f"/api/stop?token={TOKEN}").status_code == 401


def test_cookie_of_a_session_is_accepted_until_it_ends(
    new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a browser with a session
    client = new_client(TOKEN)
    client.cookies[SESSION_COOKIE] = Sessions(TOKEN).cookie()
    assert client.get("/api/stop").text == "done"

    # When its time is over, then it is none any more
    later = time.time() + SESSION_SECONDS + 1
    monkeypatch.setattr(sessions.time, "time", lambda: later)
    assert client.get("/api/stop").status_code == 401


def test_cookie_that_was_changed_is_rejected() -> None:
    # Given the cookie of a session, whose end somebody moves
    known = Sessions(TOKEN)
    ends_at, _, signature = known.cookie().partition(".")

    # Then it is none, and neither is one of another token
    assert known.is_cookie(f"{ends_at}.{signature}")
    assert not known.is_cookie(f"{int(ends_at) + 1}.{signature}")
    assert not known.is_cookie(Sessions("another-token").cookie())
    assert not any(known.is_cookie(value) for value in ("", ".", "x.y", "9" * 30 + ".é"))


def test_cookie_does_not_hold_the_token() -> None:
    assert TOKEN not in Sessions(TOKEN).cookie()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "a@localhost"]
)
def test_foreign_host_is_rejected(new_client: NewClient, host: str) -> None:
    # Given a site whose name points to this machine
    assert new_client().get("/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8365", "[::1]:8365", "10.1.2.3", "console.example"])
def test_addresses_and_own_names_are_hosts(new_client: NewClient, host: str) -> None:
    client = new_client(hosts=("console.example",))

    assert client.get("/", headers={"Host": host}).text == "done"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**ACTION, "Origin": "http://evil.example"},
        {**ACTION, "Sec-Fetch-Site": "cross-site"},
        {**ACTION, "Sec-Fetch-Site": "same-site"},
        {**ACTION, "Origin": "null"},
    ],
)
def test_action_of_another_site_is_rejected(new_client: NewClient, headers: dict[str, str]) -> None:
    # Given a reader who is logged in
    client = new_client(TOKEN)
    client.cookies[SESSION_COOKIE] = Sessions(TOKEN).cookie()

    # Then what another site lets the browser send does nothing
    assert client.post("/api/stop", headers=headers).status_code == 403


def test_own_action_is_accepted(new_client: NewClient) -> None:
    headers = {**ACTION, "Origin": "http://127.0.0.1:8365", "Sec-Fetch-Site": "same-origin"}

    assert new_client().post("/api/stop", headers=headers).text == "done"


def test_every_answer_keeps_foreign_code_out(new_client: NewClient) -> None:
    # Given answers of every kind
    client = new_client(TOKEN)
    answers = [client.get("/"), client.get("/login"), client.get("/nothing"), client.get("/live")]

    # Then each says so
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_probes_need_no_token_and_no_host(new_client: NewClient) -> None:
    assert new_client(TOKEN).get("/live", headers={"Host": "pod-7.cluster"}).text == "done"


@pytest.mark.parametrize("path", ["/li%09ve", "/lo%0Agin"])
def test_what_only_reads_like_an_open_path_needs_a_token(new_client: NewClient, path: str) -> None:
    # Given paths that are an open one once a URL was made of them and read
    # Then they are no open ones
    assert new_client(TOKEN).get(path).status_code == 401


@pytest.mark.parametrize("host", ["x/live?", "x/live#", "localhost/login?"])
def test_a_path_in_the_host_opens_nothing(
    new_client: NewClient, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    # Given a URL that is made of the host as it came, as Starlette 1.0 does
    monkeypatch.setattr(Request, "url", property(lambda request: URL(f"http://{host}{request['path']}")))

    # When the path of a page that needs no token stands in the host
    answer = new_client(TOKEN).get("/api/stop", headers={"Host": host})

    # Then the page behind it is not shown
    assert answer.status_code == 421
