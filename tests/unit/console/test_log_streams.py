"""The streams of logs: how many there may be, and when there is none."""

import asyncio
from typing import Any

import fakeredis
import pytest
from starlette.requests import Request
from starlette.responses import Response

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.runs.example_workflow import VISIBILITY_TIMEOUT
from tests.unit.workflow.failed_tasks import add_failed_run, expire_run
from worker.console import log_streams
from worker.console.log_streams import LogStreams
from worker.runs.runs import Runs, Timing

SECONDS = 30


@pytest.fixture
def streams(redis: fakeredis.FakeRedis) -> LogStreams:
    client = fakeredis.FakeAsyncRedis(
        server=redis.connection_pool.connection_kwargs["server"], decode_responses=True
    )
    return LogStreams(client, asyncio.Event())


def ask(streams: LogStreams, job: str) -> Any:
    scope = {"type": "http", "headers": [], "query_string": b"", "path_params": {"job": job}}
    return streams.log(Request(scope))


async def end(answer: Response) -> None:
    """The browser goes away before anything was sent."""

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        await asyncio.sleep(0)

    async with asyncio.timeout(SECONDS):
        await answer({"type": "http", "asgi": {"spec_version": "2.3"}}, gone, send)


async def test_log_that_is_not_kept_is_not_waited_for(
    streams: LogStreams, redis: fakeredis.FakeRedis
) -> None:
    # Given an ended run whose log has expired
    add_failed_run(redis, Runs(redis, RecordingPublisher(), Timing(VISIBILITY_TIMEOUT)), "7", 5)
    expire_run(redis, "7")

    # When it is asked for
    answer = await ask(streams, "7")

    # Then a reader hears that it is not kept any more, and waits for nothing
    async with asyncio.timeout(SECONDS):
        parts = [part async for part in answer.body_iterator]
    assert parts == [b'event: end\ndata: {"reason":"expired"}\n\n']


async def test_logs_asked_for_at_once_see_each_other(
    streams: LogStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a console that follows three logs at most
    monkeypatch.setattr(log_streams, "MAX_LOG_STREAMS", 3)

    # When five are asked for at the same time
    answers = await asyncio.gather(*(ask(streams, str(job)) for job in range(5)))

    # Then two are rejected, before Redis was asked for anything
    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 503]
    assert streams.open == 3

    # When one of them ends, then another one may begin
    await end(answers[0])
    assert (await ask(streams, "6")).status_code == 200


async def test_log_that_cannot_be_read_takes_no_stream(
    streams: LogStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that is away
    async def away(*_: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(streams._redis, "exists", away)

    with pytest.raises(ConnectionError):
        await ask(streams, "7")

    assert streams.open == 0
