"""What the page answers and does, on a Redis in memory."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from shared.channels import job_key
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.unit.console.browser import Browser
from tests.unit.runs.example_workflow import FIRST
from worker.console import changes, server
from worker.console.access import ACTION_HEADER
from worker.console.changes import ChangeListener, Version
from worker.console.event_streams import ChangeStreams
from worker.console.live_runs import MAX_ENDED_RUNS
from worker.console.overview import Overview
from worker.console.server import Console
from worker.runs.model import End
from worker.runs.runs import Runs
from worker.workflow.dead_letters import DeadLetters

ACTION = {ACTION_HEADER: "1"}
TOKEN = "a-token-of-some-length"
SECONDS = 30


@pytest.fixture
def new_console(redis: fakeredis.FakeRedis, subscriber: fakeredis.FakeAsyncRedis) -> Callable[..., Console]:
    def make(**options: Any) -> Console:
        return Console(redis, subscriber, Overview(redis, "memory://", None), "memory://", **options)

    return make


def accept(runs: Runs, job: str) -> None:
    message = DeployMessage.model_validate({"job": job, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")
    runs.store.claim_step(job, FIRST, "", "token", 30, 0, False)


@asynccontextmanager
async def listening(listener: ChangeListener) -> AsyncIterator[None]:
    task = asyncio.create_task(listener.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(listener: ChangeListener, condition: Callable[[Version], bool]) -> None:
    seen = listener.published
    async with asyncio.timeout(SECONDS):
        while not condition(seen):
            seen = await listener.newer_than(seen)


async def test_run_that_lived_before_is_looked_up(
    redis: fakeredis.FakeRedis, subscriber: fakeredis.FakeAsyncRedis, runs: Runs
) -> None:
    # Given a run that began before the page was served
    accept(runs, "42")
    listener = ChangeListener(redis, subscriber)

    # When the page is up to date, then it is there
    async with listening(listener):
        await until(listener, lambda version: version.is_connected)
        assert listener.runs.snapshot()["42"]["step"] == FIRST.name

        # And what comes after that is heard
        runs.store.finish("42", End(JobStatus.FAILED, {"error": "gone"}))
        await until(listener, lambda _: listener.runs.snapshot()["42"]["status"] == "FAILED")


async def test_run_whose_beginning_was_not_heard_is_looked_up(
    redis: fakeredis.FakeRedis, subscriber: fakeredis.FakeAsyncRedis, runs: Runs
) -> None:
    listener = ChangeListener(redis, subscriber)
    async with listening(listener):
        await until(listener, lambda version: version.is_connected)
        redis.hset(job_key("9"), mapping={"action": "deploy", "status": "RUNNING", "overall": "10"})

        # When only a change of it is heard
        redis.publish(changes.changes_channel(), json.dumps({"job": "9", "overall": "12"}))

        # Then the rest is read
        await until(listener, lambda _: "9" in listener.runs.snapshot())
        assert listener.runs.snapshot()["9"]["action"] == "deploy"


async def test_nonsense_on_the_channel_does_no_harm(
    redis: fakeredis.FakeRedis, subscriber: fakeredis.FakeAsyncRedis, runs: Runs
) -> None:
    listener = ChangeListener(redis, subscriber)
    async with listening(listener):
        await until(listener, lambda version: version.is_connected)
        strange = ("", "no JSON", "[]", "7", "null", '{"job": null}', '{"job": {"a": 1}, "overall": []}')
        for text in (*strange, "[" * 100_000):
            redis.publish(changes.changes_channel(), text)
        accept(runs, "42")
        await until(listener, lambda _: "42" in listener.runs.snapshot())

    # Then the run that came after it is there, and nothing else
    assert listener.runs.snapshot().keys() == {"42"}


async def test_stream_has_a_snapshot_and_then_changes(
    redis: fakeredis.FakeRedis, subscriber: fakeredis.FakeAsyncRedis, runs: Runs
) -> None:
    # Given a browser that listens
    accept(runs, "42")
    listener = ChangeListener(redis, subscriber)
    streams = ChangeStreams(listener, asyncio.Event())
    async with listening(listener):
        await until(listener, lambda version: version.is_connected)
        stream = streams._changes_after(None)
        first = (await anext(stream)).decode()
        assert first.splitlines()[1] == "event: snapshot"
        assert '"42"' in first

        # When a run gets on
        runs.store.mark_running("42")

        # Then only that is sent
        async with asyncio.timeout(SECONDS):
            second = (await anext(stream)).decode()
        change = json.loads(second.splitlines()[2].removeprefix("data: "))["runs"]["42"]
        assert change | {"updated": 0} == {"status": "RUNNING", "updated": 0}
        await stream.aclose()


async def test_browser_keeps_no_row_of_many_that_go_at_once(
    redis: fakeredis.FakeRedis, subscriber: fakeredis.FakeAsyncRedis, runs: Runs
) -> None:
    # Given a browser that has heard of more runs than removals are remembered
    for job in range(MAX_ENDED_RUNS + 20):
        accept(runs, f"old-{job}")
    accept(runs, "42")
    listener = ChangeListener(redis, subscriber)
    stream = ChangeStreams(listener, asyncio.Event())._changes_after(None)
    async with asyncio.timeout(SECONDS), listening(listener):
        await until(listener, lambda version: version.is_connected)
        assert len(shown_after(await anext(stream), set())) == MAX_ENDED_RUNS + 21

        # When all but one are gone at once
        for job in range(MAX_ENDED_RUNS + 20):
            listener.runs.remove(f"old-{job}")

        # Then the browser shows that one alone
        assert shown_after(await anext(stream), {"old-1", "old-519", "42"}) == {"42"}
        await stream.aclose()


def shown_after(event: bytes, before: set[str]) -> set[str]:
    """The jobs of the runs that a browser shows after an event, as `live.js` takes it."""
    kind, data = (line.partition(": ")[2] for line in event.decode().splitlines()[1:3])
    runs = json.loads(data)["runs"]
    kept = set() if kind == "snapshot" else before - runs.keys()
    return kept | {job for job, run in runs.items() if run is not None}


async def test_closed_streams_end(redis: fakeredis.FakeRedis, subscriber: fakeredis.FakeAsyncRedis) -> None:
    closing = asyncio.Event()
    streams = ChangeStreams(ChangeListener(redis, subscriber), closing)
    stream = streams._changes_after(None)
    await anext(stream)

    closing.set()

    async with asyncio.timeout(SECONDS):
        assert [event async for event in stream] in ([], [b": nothing has changed\n\n"])


def test_run_has_its_progress_and_record(new_console: Callable[..., Console], runs: Runs) -> None:
    accept(runs, "42")
    runs.progress.set("42", {"initialize": 10, "deploy": 75, "register": 15}, "deploy", 50)

    found = Browser(new_console().app).get("/api/runs/42").json()

    assert found["values"]["plugin"] == "digits@1.0.0"
    assert {"name": "deploy", "percent": 50.0} in found["progress"]
    assert found["failures"] == []


@pytest.mark.parametrize("job", ["7", "a%20b", "x" * 200])
def test_unknown_job_is_not_found(new_console: Callable[..., Console], job: str) -> None:
    assert Browser(new_console().app).get(f"/api/runs/{job}").status_code == 404


def test_stop_is_published(new_console: Callable[..., Console], monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[Any] = []
    monkeypatch.setattr(server.Publisher, "publish", lambda _, message, **__: published.append(message))

    answer = Browser(new_console().app).post("/api/runs/42/stop", headers=ACTION)

    assert answer.is_success
    assert [(message.task, message.job) for message in published] == [("stop", "42")]


def test_dead_letters_are_listed_without_their_bodies(
    new_console: Callable[..., Console], redis: fakeredis.FakeRedis
) -> None:
    # Given a rejected message with something secret in it
    DeadLetters(redis).add("deploy", '[[], {"job": "7", "password": "hunter22"}, {}]', "wrong fields")

    found = Browser(new_console().app).get("/api/dead-letters")

    assert found.json()["letters"][0] | {"id": "", "time": ""} == {
        "id": "", "time": "", "task": "deploy", "job": "7", "reason": "wrong fields",
    }  # fmt: skip
    assert "hunter22" not in found.text


def test_replay_of_what_cannot_be_replayed_says_why(
    new_console: Callable[..., Console], redis: fakeredis.FakeRedis
) -> None:
    DeadLetters(redis).add("unknown", "{}", "no such task")
    (letter,) = DeadLetters(redis).all()

    answer = Browser(new_console().app).post(f"/api/dead-letters/{letter.id}/replay", headers=ACTION)

    assert answer.status_code == 409
    assert "cannot be replayed" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["..%2Fserver.py", "nothing.js", "app.js%00", ".env", "app.py"])
def test_only_own_files_are_served(new_console: Callable[..., Console], name: str) -> None:
    assert Browser(new_console().app).get(f"/static/{name}").status_code == 404


def test_samples_are_images_of_their_folder_alone(
    new_console: Callable[..., Console], tmp_path: Path
) -> None:
    (tmp_path / "1.png").write_bytes(b"an image")
    (tmp_path / "samples.json").write_text("[]")
    browser = Browser(new_console(samples=tmp_path).app)

    assert browser.get("/samples/1.png").content == b"an image"
    assert browser.get("/samples/samples.json").status_code == 404
    assert browser.get("/samples/..%2F1.png").status_code == 404


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("ko-KR,ko;q=0.9,en;q=0.8", "ko"), ("de,en;q=0.5,ko;q=0.3", "en"), ("fr", "en"), ("", "en")],
)
def test_language_is_the_first_that_the_page_speaks(
    new_console: Callable[..., Console], accepted: str, language: str
) -> None:
    page = Browser(new_console().app).get("/", headers={"Accept-Language": accepted})

    assert f'<html lang="{language}">' in page.text


def test_page_loads_nothing_from_elsewhere() -> None:
    # Given every file of the page
    folder = Path(server.__file__).parent / "static"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert "app.js" in texts

    # Then none names another server, makes markup of text, or has code within the markup
    for name, text in texts.items():
        rest = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "://" not in rest, name
        assert "innerHTML" not in rest, name
        assert "insertAdjacentHTML" not in rest, name
        assert " style=" not in rest or not name.endswith(".html"), name
        assert "<script>" not in rest, name


def test_page_has_the_same_words_in_both_languages() -> None:
    text = (Path(server.__file__).parent / "static" / "i18n.js").read_text(encoding="utf-8")
    english, _, korean = text.partition("const WORDS")[2].partition("};")[0].partition("  ko: {")

    names = [re.findall(r'[{,\s](\w+): "', words) for words in (english, korean)]
    assert len(names[0]) > 100
    assert sorted(names[0]) == sorted(names[1])


@pytest.mark.parametrize(
    ("trusted", "is_secure"),
    [("10.0.0.0/8", True), ("127.0.0.1, 10.1.2.3", True), ("127.0.0.1", False), ("10.9.0.0/16", False)],
)
def test_cookie_is_secure_behind_a_trusted_proxy_with_tls(
    new_console: Callable[..., Console], trusted: str, is_secure: bool
) -> None:
    # Given a page behind a proxy that says that it was reached by TLS
    config = server.server_config(new_console(token=TOKEN), "0.0.0.0", 8365, trusted)
    config.load()
    browser = Browser(config.loaded_app, address="10.1.2.3")

    # When a reader logs in
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    cookie = browser.post("/login", data={"token": TOKEN}, headers=forwarded).headers["set-cookie"]

    # Then that is believed if the proxy is one of those that were named
    assert ("; Secure" in cookie) == is_secure


def test_login_form_gives_a_session(
    new_console: Callable[..., Console], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a page with a token
    monkeypatch.setattr(server, "FAILED_LOGIN_SECONDS", 0.0)
    browser = Browser(new_console(token="a-token").app)
    assert browser.get("/api/dead-letters").status_code == 401

    # When a wrong one is sent, then nothing is opened
    assert browser.post("/login", data={"token": "wrong"}).headers["location"] == "/login?failed=1"
    assert browser.get("/api/dead-letters").status_code == 401

    # When it is the right one, then the browser has a session, which only this server reads
    answer = browser.post("/login", data={"token": "a-token"})
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]
    assert browser.get("/api/dead-letters").is_success
