"""The console's `/metrics`: it needs the token, and has what the console knows and does."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import fakeredis
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from starlette.requests import Request

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.unit.console.browser import Browser
from tests.unit.runs.example_workflow import FIRST
from worker.console.event_streams import Durations
from worker.console.overview import Overview
from worker.console.server import Console
from worker.runs.keys import changes_channel
from worker.runs.model import End
from worker.runs.runs import Runs
from worker.workflow.dead_letters import DeadLetters

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


def values(text: str) -> dict[tuple[str, ...], float]:
    """Each sample: its name without the prefix, its labels' values, and its value."""
    return {
        (sample.name.removeprefix("synapse_worker_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(console: Console) -> dict[tuple[str, ...], float]:
    transport = httpx.ASGITransport(console.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return values((await client.get("/metrics")).text)


@asynccontextmanager
async def listening(console: Console) -> AsyncIterator[None]:
    task = asyncio.create_task(console.changes.run())
    try:
        while not console.changes.published.is_connected:
            await console.changes.newer_than(console.changes.published)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_metrics_need_the_token(new_console: Callable[..., Console]) -> None:
    # Given a page with a token
    browser = Browser(new_console(token=TOKEN).app)

    # Then Prometheus reads it with the token, and nobody without
    assert browser.get("/metrics").status_code == 401
    answer = browser.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert values(answer.text)["redis_up",] == 1


async def test_metrics_have_runs_and_what_redis_says(
    new_console: Callable[..., Console], redis: fakeredis.FakeRedis, runs: Runs
) -> None:
    # Given live runs, an ended one, and a dead letter
    accept(runs, "1")
    console = new_console()
    async with asyncio.timeout(SECONDS), listening(console):
        accept(runs, "2")
        runs.store.mark_running("2")
        accept(runs, "3")
        runs.store.finish("3", End(JobStatus.FAILED, {"error": "gone"}))
        DeadLetters(redis).add("deploy", "{}", "wrong")

        # When Prometheus asks once the page has heard of them
        found: dict[tuple[str, ...], float] = {}
        while found.get(("console_changes_total", "dead_letter")) != 1:
            found = await scrape(console)

    # Then they are counted by action and state, as are the ended ones that are kept
    assert found["console_runs", "deployment", "PENDING"] == 1
    assert found["console_runs", "deployment", "RUNNING"] == 1
    assert {key: value for key, value in found.items() if key[0] == "ended_runs"} == {
        ("ended_runs", "SUCCEEDED"): 0, ("ended_runs", "FAILED"): 1, ("ended_runs", "STOPPED"): 0,
    }  # fmt: skip
    assert (found["dead_letters",], found["console_connected",]) == (1, 1)
    assert found["console_changes_total", "run"] >= 4


async def test_metrics_cost_redis_the_same_with_many_runs(
    new_console: Callable[..., Console],
    redis: fakeredis.FakeRedis,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a page that knows a hundred live runs
    for job in range(100):
        accept(runs, str(job))
    console = new_console()
    commands: list[str] = []

    def counting(execute: Any) -> Any:
        def count(self: Any, *arguments: Any, **options: Any) -> Any:
            commands.append(str(arguments[0]).lower())
            return execute(self, *arguments, **options)

        return count

    async with asyncio.timeout(SECONDS), listening(console):
        for kind in (Redis, Pipeline):
            monkeypatch.setattr(kind, "execute_command", counting(kind.execute_command))

        # When Prometheus asks
        assert (await scrape(console))["console_runs", "deployment", "PENDING"] == 100

    # Then Redis was asked some commands, and for no run
    assert 5 < len(commands) <= 15
    assert "hgetall" not in commands


def test_metrics_are_served_while_redis_is_away(
    new_console: Callable[..., Console], redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that does not answer
    def away() -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(redis, "ping", away)

    # Then Prometheus has that, and what the console does
    found = values(Browser(new_console().app).get("/metrics").text)
    assert (found["redis_up",], found["console_connected",]) == (0, 0)
    assert found["console_streams", "log"] == 0


async def test_streams_are_counted_while_they_are_open(
    new_console: Callable[..., Console], runs: Runs
) -> None:
    # Given a browser that listens
    console = new_console()
    answer = await console.streams.changes(Request({"type": "http", "headers": []}))
    assert (await scrape(console))["console_streams", "changes"] == 1

    # When it goes away before anything was sent
    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        raise OSError("the browser is gone")

    with pytest.raises(BaseException):  # noqa: B017 - Starlette's own, by its release
        await answer({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, send)

    # Then no stream is open any more
    assert (await scrape(console))["console_streams", "changes"] == 0


async def test_time_from_a_change_to_its_sending_is_measured(
    new_console: Callable[..., Console], redis: fakeredis.FakeRedis, runs: Runs
) -> None:
    # Given a browser that listens
    console = new_console()
    async with asyncio.timeout(SECONDS), listening(console):
        streams = console.streams
        stream = streams._changes_after(None)
        await anext(stream)
        accept(runs, "1")
        await anext(stream)

        # When a change comes that was made four seconds ago
        redis.publish(
            changes_channel(), json.dumps({"job": "1", "step": "late", "at": console.changes.now() - 4})
        )
        await anext(stream)
        accept(runs, "2")
        await anext(stream)
        await stream.aclose()
        found = await scrape(console)

    # Then it is told from one that came at once; the last one has not been sent to its end
    assert found["console_send_seconds_count",] == 2
    assert found["console_send_seconds_bucket", "2.0"] == 1
    assert found["console_send_seconds_sum",] >= 4


def test_durations_are_counted_up_to_each_limit() -> None:
    # Given some durations, one of which a clock that is behind has made negative
    durations = Durations((0.1, 1.0))
    for seconds in (-5.0, 0.1, 0.5, 7.0):
        durations.add(seconds)

    assert durations.cumulative() == [("0.1", 2), ("1.0", 3), ("+Inf", 4)]
    assert durations.sum == pytest.approx(7.6)
