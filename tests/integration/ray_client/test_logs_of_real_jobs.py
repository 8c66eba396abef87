"""Logs of real Ray jobs through the sandbox's agent, over both protocols and on an event loop."""

import asyncio
import time
from typing import Any

import pytest

from tests.integration.ray_client.jobs import FAST_LINES, Cluster, printed
from worker.platform import (
    AsyncLogTail,
    ClientConnectionError,
    ClientTimeoutError,
    NotFoundError,
    StreamLimitExceededError,
    StreamLimits,
    ValidationError,
)

pytestmark = [pytest.mark.timeout(180), pytest.mark.ray]

COLOURS = ["\x1b[31m빨강\x1b[0m 🙂", 'data: {"type": "complete"}', "", '{"loss": 0.1}']

both = pytest.mark.parametrize("protocol", ["stream", "websocket"])


def log_of(cluster: Cluster, name: str, protocol: Any, **limits: int) -> list[str]:
    with cluster.client(stream_limits=StreamLimits(**limits)) as client:
        return printed(list(client.tail_job_logs(cluster.jobs[name], 30, protocol)))


@pytest.mark.ray
def test_a_slow_log_arrives_as_it_is_written(cluster: Cluster) -> None:
    job = cluster.jobs["steady"]
    with cluster.client() as client:
        lines = []
        for line in client.tail_job_logs(job, 30, "auto"):
            lines.append(line)
            if line == "step 1":
                assert client.get_job(job)["status"] == "RUNNING"
        assert client.get_job(job)["status"] == "SUCCEEDED"

    assert printed(lines) == [f"step {n}" for n in range(5)]


@both
def test_half_lines_and_half_characters_are_joined(cluster: Cluster, protocol: Any) -> None:
    assert log_of(cluster, "pieces", protocol) == ["partial", "한국어", "last"]


@both
def test_colours_long_lines_and_invalid_bytes_arrive(cluster: Cluster, protocol: Any) -> None:
    lines = log_of(cluster, "colours", protocol)

    assert lines[:4] == COLOURS
    assert lines[4].startswith("xxxx")
    assert lines[4].endswith("… [cut: 300000 bytes]")
    assert lines[5:] == ["caf�"]


@both
def test_a_fast_log_is_complete_within_wider_limits(cluster: Cluster, protocol: Any) -> None:
    lines = log_of(cluster, "fast", protocol, max_messages=100_000, max_lines=100_000)

    assert lines == [f"line {n}" for n in range(FAST_LINES)]


@pytest.mark.parametrize(
    ("protocol", "max_lines"), [("stream", 50_000), ("websocket", 10_000), ("auto", 10_000)]
)
def test_a_fast_log_exceeds_the_limits(cluster: Cluster, protocol: Any, max_lines: int) -> None:
    lines: list[str] = []
    with cluster.client() as client, pytest.raises(StreamLimitExceededError) as caught:
        lines.extend(client.tail_job_logs(cluster.jobs["fast"], 30, protocol))

    assert caught.value.status == 429
    assert len(lines) == max_lines
    own = printed(lines)
    assert own == [f"line {n}" for n in range(len(own))]


@both
def test_log_of_a_failing_job_is_complete(cluster: Cluster, protocol: Any) -> None:
    lines = log_of(cluster, "failing", protocol)

    assert lines == ["before", "it failed"]
    with cluster.client() as client:
        assert client.get_job(cluster.jobs["failing"])["status"] == "FAILED"


@pytest.mark.ray
def test_a_silent_job_times_out_only_with_a_short_timeout(cluster: Cluster) -> None:
    job = cluster.submit("silent_again", "import time; time.sleep(4)")
    with cluster.client() as client:
        for tail in (client.stream_tail_job_logs, client.websocket_tail_job_logs):
            with pytest.raises(ClientTimeoutError) as caught:
                list(tail(job, 0.8))
            assert caught.value.status == 408
        assert printed(list(client.tail_job_logs(job, 30))) == []


async def test_an_asynchronous_tail_reports_completion(cluster: Cluster) -> None:
    async def follow(name: str, protocol: Any) -> tuple[list[str], AsyncLogTail]:
        with cluster.client() as client:
            tail = client.log_tail(cluster.jobs[name], 30, protocol)
        return printed([line async for line in tail]), tail

    found = await asyncio.gather(
        follow("pieces", "websocket"),
        follow("pieces", "stream"),
        follow("failing", "auto"),
        follow("silent", "auto"),
    )

    assert [lines for lines, _ in found] == [
        ["partial", "한국어", "last"],
        ["partial", "한국어", "last"],
        ["before", "it failed"],
        [],
    ]
    assert all(tail.completed and tail.partial_line is None for _, tail in found)


@both
def test_an_unknown_job_is_not_found(cluster: Cluster, protocol: Any) -> None:
    with cluster.client() as client, pytest.raises(NotFoundError):
        list(client.tail_job_logs("raysubmit_none", 30, protocol))


def test_a_log_can_be_read_after_a_restart_of_the_agent(cluster: Cluster) -> None:
    assert cluster.sandbox.agent is not None
    with cluster.client() as client:
        logs = [client.tail_job_logs(cluster.jobs["endless"], 30, each) for each in ("stream", "websocket")]
        assert next(logs[0]) == next(logs[1])
        cluster.sandbox.agent.restart()
        for log in logs:
            with pytest.raises(ClientConnectionError):
                list(log)
        assert next(client.tail_job_logs(cluster.jobs["endless"], 30))


def test_log_of_a_stopped_job_ends(cluster: Cluster) -> None:
    job = cluster.jobs["endless"]
    lines: list[str] = []
    with cluster.client() as client:
        for line in client.tail_job_logs(job, 30, "websocket"):
            lines.append(line)
            if line == "still here 3":
                assert client.stop_job(job)["status"] == "STOPPING"
                stopped = time.monotonic()
        assert time.monotonic() - stopped < 20
        assert client.get_job(job)["status"] == "STOPPED"
        with pytest.raises(ValidationError) as caught:
            client.stop_job(job)

    assert caught.value.status == 400
    own = printed(lines)
    assert own == [f"still here {n}" for n in range(len(own))]
    assert log_of(cluster, "endless", "stream") == own


def test_the_cluster_is_listed(cluster: Cluster) -> None:
    with cluster.client() as client:
        assert {job["id"] for job in client.list_jobs()["results"]} >= set(cluster.jobs.values())
        (node,) = client.list_nodes()["results"]
        assert client.get_node(node["node_id"])["state"] == "ALIVE"
        for found in (client.list_serve_applications(), client.list_tasks()):
            assert isinstance(found["results"], list)
        assert printed(client.list_job_logs(cluster.jobs["failing"]).splitlines()) == ["before", "it failed"]
