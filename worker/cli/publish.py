"""The commands that publish a message: deploy, to-task, retry, stop."""

import json
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from redis.exceptions import RedisError

from shared import DeployMessage, Message, StopMessage, ToTaskMessage
from shared.validation import describe_validation_error
from worker.cli.console import (
    DEFAULT_REDIS_URL,
    BrokerUrl,
    Job,
    Priority,
    RedisUrl,
    connect,
    fail,
    out,
    publish,
    try_connect,
)
from worker.cli.follow import RunRecord, fail_if_rejected, follow_to_end
from worker.workflow.retry import RetryError, retry_message

Plugin = Annotated[str, typer.Argument(help="The plugin's release, code@version.", metavar="PLUGIN")]
Params = Annotated[str, typer.Option("--params", help="The message's params, a JSON object.")]
Tenant = Annotated[str | None, typer.Option(help="The tenant at the backend.")]
SkipAnnotated = Annotated[
    bool, typer.Option("--skip-annotated", help="Leave the tasks alone whose data is not empty.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Only say how many tasks and chunks there are, and what would be deployed."
    ),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the run until it ends.")]


def deploy(
    job: Job,
    plugin: Plugin,
    agent: Annotated[int, typer.Option(help="Id of the Ray cluster's agent.")],
    params: Params = "{}",
    tenant: Tenant = None,
    priority: Priority = None,
    force: Annotated[
        bool, typer.Option("--force", help="Submit it also when an identical one is on Serve already.")
    ] = False,
    follow: Follow = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Put a plugin's model online on Ray Serve."""
    fields = _without_unset(
        job=job, plugin=plugin, agent=agent, params=_parse_params(params), tenant=tenant, force=force or None
    )
    message = _validate(DeployMessage, fields)
    _publish_run(message, broker_url, redis_url, priority=priority, follow=follow)


def to_task(
    job: Job,
    plugin: Plugin,
    params: Params,
    tenant: Tenant = None,
    priority: Priority = None,
    skip_annotated: SkipAnnotated = False,
    dry_run: DryRun = False,
    follow: Follow = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Pre-annotate the tasks of a project."""
    fields = _without_unset(
        job=job,
        plugin=plugin,
        params=_parse_params(params),
        tenant=tenant,
        skip_annotated=skip_annotated or None,
        dry_run=dry_run or None,
    )
    message = _validate(ToTaskMessage, fields)
    _publish_run(message, broker_url, redis_url, priority=priority, follow=follow)


def retry(
    job: Annotated[str, typer.Argument(help="The job whose run has ended.", metavar="JOB")],
    new_job: Annotated[str, typer.Option("--new-job", help="The backend's id of the job that retries it.")],
    plugin: Annotated[
        str | None, typer.Option(help="Another release than that of the run, code@version.")
    ] = None,
    skip_annotated: SkipAnnotated = False,
    dry_run: DryRun = False,
    priority: Priority = None,
    follow: Follow = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Annotate exactly the failed tasks of an ended run, as a new job."""
    try:
        message = retry_message(
            connect(redis_url),
            job,
            new_job,
            plugin=plugin,
            skip_annotated=skip_annotated,
            dry_run=dry_run,
        )
    except RetryError as error:
        fail(str(error), hint=error.hint)
    _publish_run(message, broker_url, redis_url, priority=priority, follow=follow)


def stop(job: Job, redis_url: RedisUrl = DEFAULT_REDIS_URL, broker_url: BrokerUrl = None) -> None:
    """Stop a run, even while its message is still queued."""
    message = _validate(StopMessage, {"job": job})
    record = _read_record(message.job, redis_url)
    _publish_message(message, broker_url, redis_url)
    if record is not None and record.has_ended:
        out.print(f"job {message.job} has already ended: {record.status}")
    elif record is not None and record.status is None:
        out.print(f"no run of job {message.job} is known yet; the stop is remembered for a day")


def _publish_run(
    message: Message, broker_url: str | None, redis_url: str, *, priority: int | None, follow: bool
) -> None:
    """Publish a message that starts a run, unless the job has a run already or its message was rejected."""
    record = _read_record(message.job, redis_url, fail_when_rejected=True)
    if record is not None and record.has_ended:
        fail(
            f"job {message.job} has already ended: {record.status}, {record.updated}; nothing is started",
            hint="A job runs once: publish with a new job.",
        )
    if record is not None and record.status is not None:
        out.print(
            f"job {message.job} runs already: {'following that run' if follow else 'nothing is started'}"
        )
    else:
        _publish_message(message, broker_url, redis_url, priority)
        if record is not None and record.stop_is_remembered:
            out.print(f"a stop of job {message.job} came before and is remembered: its run ends at once")
    if follow:
        follow_to_end(message.job, redis_url)


def _read_record(job: str, redis_url: str, *, fail_when_rejected: bool = False) -> RunRecord | None:
    """The run of a job; None when Redis does not answer, since the broker may be another server."""
    try:
        redis = try_connect(redis_url)
        record = RunRecord.read(redis, job)
        if fail_when_rejected and record.status is None:
            fail_if_rejected(redis, job)
    except RedisError:
        return None
    return record


def _without_unset(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _parse_params(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        fail(f"--params is not JSON: {error}")
    if not isinstance(value, dict):
        fail("--params must be a JSON object")
    return value


def _validate(model: type[Message], fields: dict[str, object]) -> Message:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        fail(describe_validation_error(error))


def _publish_message(
    message: Message, broker_url: str | None, redis_url: str, priority: int | None = None
) -> None:
    publish(message, broker_url, redis_url, priority=priority)
    out.print(f"{message.task} published: job {message.job}")
