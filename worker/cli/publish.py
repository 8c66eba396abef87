"""Commands that publish work: deploy, to-task, stop."""

import json
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from redis.exceptions import RedisError

from shared import DeployMessage, Message, StopMessage, ToTaskMessage
from shared.validation import describe_validation_error
from worker.cli.console import DEFAULT_REDIS_URL, BrokerUrl, Job, RedisUrl, fail, out, publish, reach
from worker.cli.following import KnownRun, fail_if_refused, follow_to_end

Plugin = Annotated[str, typer.Argument(help="The plugin's release, code@version.", metavar="PLUGIN")]
Params = Annotated[str, typer.Option("--params", help="The message's params, a JSON object.")]
Tenant = Annotated[str | None, typer.Option(help="The tenant at the backend.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the run until it ends.")]


def deploy(
    job: Job,
    plugin: Plugin,
    agent: Annotated[int, typer.Option(help="The Ray cluster's agent.")],
    params: Params = "{}",
    tenant: Tenant = None,
    follow: Follow = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Put a plugin's model online on Ray Serve."""
    fields = _fields(job=job, plugin=plugin, agent=agent, params=_json(params), tenant=tenant)
    _start(_message(DeployMessage, fields), broker_url, redis_url, follow=follow)


def to_task(
    job: Job,
    plugin: Plugin,
    params: Params,
    tenant: Tenant = None,
    follow: Follow = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Pre-annotate the tasks of a project."""
    fields = _fields(job=job, plugin=plugin, params=_json(params), tenant=tenant)
    _start(_message(ToTaskMessage, fields), broker_url, redis_url, follow=follow)


def stop(job: Job, redis_url: RedisUrl = DEFAULT_REDIS_URL, broker_url: BrokerUrl = None) -> None:
    """End a run, also one that has not been read yet."""
    message = _message(StopMessage, {"job": job})
    known = _known(message.job, redis_url)
    _publish(message, broker_url, redis_url)
    if known is not None and known.has_ended:
        out.print(f"job {message.job} has already ended: {known.status}")
    elif known is not None and known.status is None:
        out.print(f"no run of job {message.job} is known yet; the stop is remembered for a day")


def _start(message: Message, broker_url: str | None, redis_url: str, *, follow: bool) -> None:
    """Publish a run's message, unless it would start nothing."""
    known = _known(message.job, redis_url, may_be_refused=True)
    if known is not None and known.has_ended:
        fail(
            f"job {message.job} has already ended: {known.status}, {known.updated}; nothing is started",
            hint="A job runs once: publish with a new job.",
        )
    if known is not None and known.status is not None:
        out.print(
            f"job {message.job} runs already: {'following that run' if follow else 'nothing is started'}"
        )
    else:
        _publish(message, broker_url, redis_url)
        if known is not None and known.stop_is_remembered:
            out.print(f"a stop of job {message.job} came before and is remembered: its run ends at once")
    if follow:
        follow_to_end(message.job, redis_url)


def _known(job: str, redis_url: str, *, may_be_refused: bool = False) -> KnownRun | None:
    """None when Redis does not say: the queue may be elsewhere and take the message all the same."""
    try:
        redis = reach(redis_url)
        known = KnownRun.of(redis, job)
        if may_be_refused and known.status is None:
            fail_if_refused(redis, job)
    except RedisError:
        return None
    return known


def _fields(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        fail(f"--params is not JSON: {error}")
    if not isinstance(value, dict):
        fail("--params must be a JSON object")
    return value


def _message(model: type[Message], fields: dict[str, Any]) -> Message:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        fail(describe_validation_error(error))


def _publish(message: Message, broker_url: str | None, redis_url: str) -> None:
    publish(message, broker_url, redis_url)
    out.print(f"{message.task} published: job {message.job}")
