"""How a backend service uses `shared`. `make lint` has the type checker judge it; nothing here is run.

Each `type: ignore` marks a mistake that the checker must find: one that it no longer finds fails the lint.
"""

from collections.abc import Iterator
from typing import Any, assert_type

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from shared import (
    DeployMessage,
    DeployParams,
    JobStatus,
    Message,
    Publisher,
    ServeApplicationStatus,
    StopMessage,
    TailLogsMessage,
    TaskFailure,
    ToTaskMessage,
    ToTaskMethod,
    ToTaskParams,
    ToTaskResult,
)
from shared.channels import dead_letters_key, events_channel, job_key, logs_channel, logs_history
from shared.follower import AsyncLogFollower, LogFollower, LogLine, RunEvent, follow_run


def publish_work(broker_url: str) -> None:
    """All four messages, with and without what may be left out."""
    params = ToTaskParams(
        name="first pass", project=7, agent=1, method=ToTaskMethod.INFERENCE, pre_processor=3, model=1
    )
    messages: list[Message] = [
        DeployMessage(job="41", plugin="digits@1.0.0", agent=1),
        DeployMessage(
            job="41",
            plugin="digits@1.0.0",
            agent=1,
            params=DeployParams(num_cpus=0.5, num_gpus=0, memory=1024, num_replicas=2),
            action="deployment",
            language="ko",
            tenant="acme",
        ),
        ToTaskMessage(job="42", plugin="digits@1.0.0", params=params),
        TailLogsMessage(job="42", ray_job="raysubmit_1", agent=1, protocol="websocket"),
        StopMessage(job="42"),
    ]
    with Publisher(broker_url) as publisher:
        assert_type(publisher, Publisher)
        for message in messages:
            assert_type(publisher.publish(message), str)
        assert_type(publisher.close(), None)


def read_message(message: ToTaskMessage) -> None:
    """A message's fields are as declared, and its class says where it goes."""
    assert_type(message.job, str)
    assert_type(message.plugin, str)
    assert_type(message.language, str)
    assert_type(message.tenant, str | None)
    assert_type(message.params, ToTaskParams)
    assert_type(message.params.project, int)
    assert_type(message.params.model, int | None)
    assert_type(message.params.method, ToTaskMethod)
    assert_type(message.params.batch_size, int)
    assert_type(message.params.task_filters, dict[str, Any])
    assert_type(ToTaskMessage.task, str)
    assert_type(ToTaskMessage.queue, str)
    assert_type(DeployMessage.agent_queue(1), str)


def follow(redis: Redis, job: str) -> str:
    """A run's events and its log, from where they stand to their end."""
    events = follow_run(redis, job)
    assert_type(events, Iterator[RunEvent])
    for event in events:
        assert_type(event.kind, str)
        assert_type(event.content, dict[str, Any])
    log = LogFollower(redis, job, after=17)
    for line in log:
        assert_type(line, LogLine)
        assert_type((line.seq, line.time, line.source, line.level, line.line), tuple[int, str, str, str, str])
    assert_type(log.seq, int)
    return log.reason


async def follow_in_an_event_loop(redis: AsyncRedis, job: str) -> str:
    """The same log with `async for`."""
    log = AsyncLogFollower(redis, job)
    async for line in log:
        assert_type(line, LogLine)
    return log.reason


def read_the_end(result: ToTaskResult, status: JobStatus) -> None:
    """What a job ends with."""
    assert_type(result.status, JobStatus)
    assert_type((result.total_tasks, result.success_count, result.failed_count), tuple[int, int, int])
    assert_type(result.failures, list[TaskFailure])
    for failure in result.failures:
        assert_type((failure.task_id, failure.error), tuple[int, str])
    assert_type(status.is_final, bool)
    assert_type(ServeApplicationStatus("RUNNING"), ServeApplicationStatus)


def names_in_redis(job: str) -> list[str]:
    """The keys and channels for a service that reads Redis without the follower."""
    return [dead_letters_key(), job_key(job), events_channel(job), logs_channel(job), logs_history(job)]


def mistakes(publisher: Publisher, redis: Redis, message: StopMessage) -> None:
    """What the checker must reject."""
    DeployMessage(job="41", plugin="digits@1.0.0")  # type: ignore[call-arg]  # an agent is required
    DeployMessage(job="41", plugin="digits@1.0.0", agent="one")  # type: ignore[arg-type]
    DeployMessage(job="41", plugin="digits@1.0.0", agent=1, gpu=1)  # type: ignore[call-arg]
    ToTaskParams(project=7, agent=1)  # type: ignore[call-arg]  # a name is required
    ToTaskParams(name="x", project=7, agent=1, method="guess")  # type: ignore[arg-type]
    TailLogsMessage(job="42", ray_job="raysubmit_1", protocol="ftp")  # type: ignore[arg-type]
    StopMessage("42")  # type: ignore[call-arg]  # arguments are named
    publisher.publish({"job": "42"})  # type: ignore[arg-type]
    publisher.publish("stop", message)  # type: ignore[arg-type, call-arg]
    Publisher()  # type: ignore[call-arg]
    LogFollower(redis, "42", 17)  # type: ignore[call-arg]  # `after` is named
    follow_run(redis)  # type: ignore[call-arg]
    JobStatus.DONE  # type: ignore[attr-defined]  # noqa: B018
